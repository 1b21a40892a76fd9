"""Two runs or more side by side: what is read, what the tables say, and what is refused in one line."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from flap.compare import main
from flap.results import Report
from flap.results.comparison import Comparison, compare
from flap.results.number_texts import relative
from flap.results.run_folder import RunRecord
from flap.results.tables import Entry, Table
from flap.storage import write_status
from tests.helpers.forked import command_line

NAME = "words.txt/perplexity@16"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, run_tiny: Callable[..., Report]) -> Path:
    """Two runs, `a` and `b`, of two methods, and `c`, as `b` with windows of another length."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in {
        "a": [],
        "b": ["structure=UL-UM"],
        "c": ["structure=UL-UM", "eval.perplexity.seq_len=8"],
    }.items():
        run_tiny(folder / name, *more)
    return folder


def compared(*paths: Path) -> Comparison:
    return compare(paths)


def table(comparison: Comparison, title: str) -> Table:
    [found] = (table for table in comparison.tables if table.title.startswith(title))
    return found


def rows(comparison: Comparison, title: str) -> dict[str, list[str]]:
    return {name.text: [entry.text for entry in entries] for name, *entries in table(comparison, title).rows}


def altered(run: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run with another report."""
    shutil.copytree(run, target)
    report = json.loads((target / "report.json").read_text())
    change(report)
    (target / "report.json").write_text(json.dumps(report))
    return target


def test_of_the_config_only_what_differs_is_shown(runs: Path) -> None:
    found = rows(compared(runs / "a", runs / "b"), "Config")
    assert found["structure"] == ["ALAM", "ULUM"]
    assert {key.split(".")[0] for key in found} == {"structure", "method"}
    same = table(compared(runs / "a", runs / "a"), "Config")
    assert (same.rows, same.note) == ([], "No difference.")


def test_numbers_have_differences_with_paired_errors(runs: Path) -> None:
    values = []
    for run in (runs / "a", runs / "b"):
        entries = json.loads((run / "evaluation.json").read_text())
        documents = json.loads(gzip.decompress((run / "documents.json.gz").read_bytes()))
        values += [found[NAME] for digest, found in documents.items() if "plan" in entries[digest]["key"]]
    changes = numpy.subtract(values[1], values[0])
    error = changes.std(ddof=1) / len(changes) ** 0.5
    comparison = compared(runs / "a", runs / "b")
    assert table(comparison, "Numbers").heads == ("", "dense", "A", "B", "B - A")
    a, b = numpy.mean(values, axis=1)
    dense, *shown, difference = rows(comparison, "Numbers")[NAME]
    report = Report.load(runs / "a" / "report.json")
    assert [dense, *shown] == [f"{report.evaluation['dense'][NAME]:,.3f}", f"{a:,.3f}", f"{b:,.3f}"]
    assert difference.startswith(f"{b - a:+,.2f} ± {error:,.2f} ({b / a - 1:+,.1%})")
    entry, _ = (row[-1] for row in table(comparison, "Numbers").rows)
    assert (entry.mark == "clear") != difference.endswith("within noise")


def test_a_run_is_within_the_noise_of_itself(runs: Path) -> None:
    entry, _ = (row[-1] for row in table(compared(runs / "a", runs / "a"), "Numbers").rows)
    assert entry == Entry("+0.00 ± 0.00 (+0.0%) within noise")


def test_other_windows_are_not_paired(runs: Path, tmp_path: Path) -> None:
    other = altered(runs / "b", tmp_path / "b", lambda report: None)
    entries = (other / "evaluation.json").read_text().replace('"bos": false', '"bos": true')
    (other / "evaluation.json").write_text(entries)
    entry, _ = (row[-1] for row in table(compared(runs / "a", other), "Numbers").rows)
    assert entry.text and "±" not in entry.text and not entry.mark
    found = rows(compared(runs / "b", runs / "c"), "Numbers")  # neither has the other's number
    assert [bool(text) for text in found[NAME]] == [True, False, False]
    assert [bool(text) for text in found["words.txt/perplexity@8"]] == [False, True, False]


def test_costs_stand_side_by_side(runs: Path) -> None:
    reports = [Report.load(runs / name / "report.json") for name in "ab"]
    found = rows(compared(runs / "a", runs / "b"), "Size")
    a, b = (report.parameters["total_after"] for report in reports)
    assert found["parameters"] == [f"{a:,}", f"{b:,}", f"{b / a - 1:+.1%}"]
    assert relative(2.0, 1.5) == "-25.0%" and relative(2.0, 6.2) == "3.1 times" and relative(0.0, 1.0) == ""
    assert found["seconds, total"][:2] == [f"{report.seconds['total']:,.1f}" for report in reports]
    assert found["peak memory, host"][0].endswith("B") and "peak memory, device" not in found


def test_plans_have_widths_and_the_overlap_of_kept_units(runs: Path) -> None:
    plans = [json.loads((runs / name / "plan.json").read_text())["layers"] for name in "ab"]
    comparison = compared(runs / "a", runs / "b")
    heads = ("A KV heads", "B KV heads", "overlap with A", "A neurons", "B neurons", "overlap with A")
    assert table(comparison, "Plans").heads == ("layer", *heads)
    found = rows(comparison, "Plans")
    for i, (a, b) in enumerate(zip(*plans, strict=True)):
        expected = []
        for kind in ("kv_heads", "neurons"):
            one, other = set(a[kind]), set(b[kind])
            expected += [str(len(one)), str(len(other)), f"{len(one & other) / len(one | other):.0%}"]
        assert found[str(i)] == expected
    assert found["all"][3] == str(sum(len(layer["neurons"]) for layer in plans[0]))


def test_a_run_its_checkpoint_and_its_plan_are_the_same(runs: Path) -> None:
    comparison = compared(runs / "a", runs / "a" / "checkpoint", runs / "a" / "plan.json")
    assert [run.kind for run in comparison.runs.values()] == ["run", "checkpoint", "plan"]
    assert table(comparison, "Config").note == "No difference." and comparison.notes == []
    assert table(comparison, "Numbers").heads == ("", "dense", "A")
    overlaps = [i for i, head in enumerate(table(comparison, "Plans").heads) if head == "overlap with A"]
    assert {row[i].text for row in table(comparison, "Plans").rows for i in overlaps} == {"100%"}
    plans = compared(runs / "a" / "plan.json", runs / "b" / "plan.json")
    assert [one.title for one in plans.tables] == ["Config", "Plans by layer"]


def test_other_models_and_versions_are_compared_and_told(runs: Path, tmp_path: Path) -> None:
    def change(report: dict[str, Any]) -> None:
        report["config"]["model"]["name"] = "other"
        report["versions"]["torch"] = "1.0"
        for layer in report["layers_before"]:
            layer["neurons"] += 1

    comparison = compared(runs / "a", runs / "b", altered(runs / "a", tmp_path / "other", change))
    [versions] = {comparison.runs[letter].report["versions"]["torch"] for letter in "AB"}
    assert comparison.notes == [
        "Different models. A, B: tiny; C: other.",
        f"Different versions of torch. A, B: {versions}; C: 1.0.",
    ]
    assert rows(comparison, "Config")["model.name"] == ["tiny", "tiny", "other"]
    assert not any("overlap" in head for head in table(comparison, "Plans").heads)
    assert "no overlap" in table(comparison, "Plans").note


def torn(folder: Path, name: str) -> Path:
    (folder / name).write_text((folder / name).read_text()[:100])
    return folder


def lacking(folder: Path, numbers: str) -> Path:
    report = json.loads((folder / "report.json").read_text())
    del report["evaluation"][numbers]
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda run: run / "nowhere", "no such file or folder; expected the folder of a finished run, a checkpoint"),
        (lambda run: (run / "empty").mkdir() or run / "empty", "no run in it; expected the folder of a finished run"),
        (lambda run: torn(run, "report.json"), "report.json: cannot be read (JSONDecodeError)"),
        (lambda run: lacking(run, "pruned"), "report.json: has no valid evaluation.pruned; resume=false runs it again"),
        (lambda run: torn(run, "plan.json"), "plan.json: cannot be read as a JSON object (JSONDecodeError)"),
        (lambda run: torn(run, "plan.json") / "plan.json", "plan.json: cannot be read as a JSON object"),
        (lambda run: run / "evaluation.json", "evaluation.json: holds no plan; expected"),
        (lambda run: write_status(run, "failed", "out of memory") or run, "the run failed (out of memory); expected"),
        (lambda run: write_status(run, "running") or run, "has not finished: still running, or killed; expected"),
        (lambda run: write_status(run / "0_x", "finished") or (run / "report.json").unlink() or run,
         "a folder of runs; name those to compare, as "),
        (lambda run: write_status(run / "0_x", "failed") or (run / "report.json").unlink() or run,
         "a folder of runs; name those to compare, once they have finished: none has"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(
    runs: Path, tmp_path: Path, damage: Callable[[Path], Path], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = damage(altered(runs / "b", tmp_path / "bad", lambda report: None))
    with pytest.raises(SystemExit) as stopped:
        main([str(runs / "a"), str(bad), "--page", str(tmp_path / "page.html")])
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert stopped.value.code == 1 and line.startswith(f"error: {tmp_path / 'bad'}") and why in line
    assert captured.out == "" and not (tmp_path / "page.html").exists()


def test_one_run_cannot_be_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(runs / "a")])
    assert capsys.readouterr().err == "error: 1 to compare; expected 2 to 26 runs, checkpoints or plans\n"


def test_a_page_that_cannot_be_written_is_one_clear_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(runs / "a"), str(runs / "b"), "--page", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: --page={tmp_path}: cannot be written (Is a directory); expected a file as page.html"


def test_the_command_line_prints_tables_that_are_not_folded(runs: Path, tmp_path: Path) -> None:
    done = command_line(tmp_path, str(runs / "a"), str(runs / "b"), module="flap.compare")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"A  {runs / 'a'} (run)", f"B  {runs / 'b'} (run)"]
    assert any(line.strip(" │").startswith(NAME) and "±" in line for line in lines)
    assert all(title in lines for title in ("Config", "Numbers of the pruned models", "Plans by layer"))


def test_a_number_of_several_documents_is_paired_on_those_that_both_runs_have_seen() -> None:
    """An earlier start has kept the same number, of other documents; a single one has no error."""
    one = RunRecord("one", documents={("acc", "a"): [1.0, 0.0, 0.0], ("acc", "b"): [0.0]})
    other = RunRecord("other", documents={("acc", "a"): [1.0, 1.0, 0.0], ("acc", "b"): [1.0], ("acc", "c"): [1.0]})
    assert other.differences_to(one, ["acc"])["acc"].mean == pytest.approx(1 / 3)
