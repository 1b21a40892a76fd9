"""`flap reproduce` repeats the run of a report, and says which results are equal or different."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from flap.commands.reproduce import main
from flap.results import Report
from flap.results.reproduction import compare_runs, read_finished


@pytest.fixture
def run(run_tiny: Callable[..., Report], tmp_path: Path) -> Path:
    """Do a run on a tiny model, and return its folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    run_tiny(folder)
    return folder


def edit_report(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


def test_a_run_is_reproduced_beside_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (run / "report.json").read_bytes()
    main([str(run)])
    printed = capsys.readouterr().out
    assert "Reproduced: all " in printed
    assert "different" not in printed
    assert "layers as wide as before" in printed
    again = tmp_path / "run-again"
    assert (again / "plan.json").read_bytes() == (run / "plan.json").read_bytes()
    assert (run / "report.json").read_bytes() == before


def test_another_number_exits_with_code_1_and_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`flap reproduce` prints how its run differs from a report that was edited before.

    The report lies in a folder without other files, as if it came from another machine. The command
    prints the versions and the perplexity that were edited, and exits with code 1.
    """

    def change(report: dict) -> None:
        report["versions"]["torch"] = "2.0.0"
        del report["versions"]["datasets"]
        report["evaluation"]["pruned"]["words.txt/perplexity@16"] *= 2

    edit_report(run, change)
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    (alone / "report.json").write_bytes((run / "report.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([str(alone / "report.json"), "--into", str(tmp_path / "new")])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "torch 2.0.0 -> " in printed
    assert "datasets unknown -> " in printed
    assert "Not reproduced: 1 of " in printed
    [line] = [row for row in printed.splitlines() if row.rstrip(" │").endswith("different")]
    assert "words.txt/perplexity@16" in line


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "within the error"), (2.0, "different")])
def test_a_report_alone_has_an_error_for_perplexities(
    run: Path, tmp_path: Path, share: float, verdict: str
) -> None:
    """The change of a perplexity between two runs is compared with a standard error in the report.

    A report contains no standard error of the pruned model's perplexity. So the change is compared
    with the standard error of the difference between the pruned and the dense model.

    share: the change of the perplexity, divided by this standard error.
    """
    name = "words.txt/perplexity@16"
    new = read_finished(run)
    assert new.report is not None

    def change(report: dict) -> None:
        assert f"{name}_stderr" not in report["evaluation"]["pruned"]
        report["evaluation"]["pruned"][name] += share * report["difference_stderr"][name]

    edit_report(run, change)
    alone = tmp_path / "report.json"
    alone.write_bytes((run / "report.json").read_bytes())
    comparisons = compare_runs(read_finished(alone), new)
    assert {(one.model, one.verdict) for one in comparisons if one.name == name} == {
        ("dense", "equal"),
        ("pruned", verdict),
    }


def test_another_seed_and_a_log_as_of_any_run(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flap.runtime.progress.SECONDS_BETWEEN_LINES", 0.0)
    new = tmp_path / "new"
    with suppress(SystemExit):  # with another seed, results may have the verdict `different`
        main([str(run), "--into", str(new), "--seed", "1"])
    assert Report.load(new / "report.json").config["seed"] == 1
    printed = capfd.readouterr().err
    assert re.search(r"^compress, layer by layer: \d+ %, ", printed, re.MULTILINE)
    assert "Loading weights" not in printed
    log = (new / "flap.log").read_text()
    assert "[flap.runtime.progress][INFO] compress, layer by layer: " in log
    assert "[flap.runs.memory][INFO] compress: took " in log


def test_what_cannot_be_run_again_is_said_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "missing: no report of a finished run": [str(tmp_path / "missing")],
        "exists already; choose a new folder": [str(run), "--into", str(run)],
    }
    for expected, arguments in cases.items():
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and expected in line
