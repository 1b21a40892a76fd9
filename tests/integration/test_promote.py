"""A sweep whose best cells are measured in full, on what they saved: the command, its page, and the list of studies."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from flap.results.study_table import best
from flap.results.sweep_folders import read_study
from flap.study import main
from tests.helpers.runs import tiny

Cli = Callable[..., "CompletedProcess[str]"]
BY = "by=words.txt/perplexity@16"
CELLS = ("metric=WIFV,random", "ratio=0.2,0.8", "hydra.sweep.dir=s")


def reports(sweep: Path) -> dict[str, dict[str, Any]]:
    """report.json of each cell by its number."""
    return {path.parent.name[0]: json.loads(path.read_text()) for path in sorted(sweep.glob("*/report.json"))}


def files(sweep: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file() and ".lock" not in path.name}


@pytest.fixture
def fuller(text_file: Path) -> list[str]:
    return ["eval=[divergence]", f"eval.divergence.datasets=[{text_file}]", "eval.divergence.seq_len=16"]


def promoted(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    main(["promote", *words])
    return capsys.readouterr().out.splitlines()


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["promote", *words])
    said = capsys.readouterr()
    assert (stopped.value.code, said.out) == (1, "")
    [line] = said.err.splitlines()
    return line


@pytest.mark.long
def test_the_best_cells_are_measured_in_full_on_what_they_saved(
    quick_flap: Cli,
    model_dir: Path,
    text_file: Path,
    tmp_path: Path,
    fuller: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = Path("s")
    base = [*tiny(model_dir, text_file), "checkpoint.save=false"]
    done = quick_flap("-m", *base, *CELLS)
    assert done.returncode == 0, done.stderr
    before = reports(sweep)
    line = refusal([str(sweep), "top=1", BY, *fuller], capsys)
    _, saving = line.split("is there; this saves them: python -m flap ")
    again = quick_flap(*shlex.split(saving))  # the command as it is printed
    assert again.returncode == 0, again.stderr
    saved = reports(sweep)
    assert {number: one["evaluation"] for number, one in saved.items()} == {
        number: one["evaluation"] for number, one in before.items()
    }
    assert all(one["statistics_cache"] == "hit" for one in saved.values())

    numbers = {run.number for run in best(read_study(sweep), BY.removeprefix("by="), 1)}
    *names, page = promoted([str(sweep), "top=1", BY, *fuller], capsys)
    assert page == "s/index.html" and {name[0] for name in names} == numbers
    after = reports(sweep)
    divergence = "words.txt/kl@16"
    for number, one in after.items():
        known, new = one["evaluation"]["pruned"], saved[number]["evaluation"]["pruned"]
        assert (divergence in known) == (number in numbers)
        assert {name: known[name] for name in new} == pytest.approx(new)
        assert one["seconds"]["calibrate"] == saved[number]["seconds"]["calibrate"]  # which was not done again
        rest = {"layers", "ratio", "parameters", "git", "versions", "repairs", "checkpoint"}
        assert {name: one[name] for name in rest} == {name: saved[number][name] for name in rest}
    text = (sweep / "index.html").read_text()
    assert text.count("python -m flap.study promote s top=1 ") == 1
    assert len(read_study(sweep).dense) == 1
    assert "kl@16" in text and text.count('<tr class="finished"') == 4

    again = files(sweep)
    assert promoted([str(sweep), "top=1", BY, *fuller], capsys)[:-1] == names
    assert {path for path, content in files(sweep).items() if again[path] != content} <= {sweep / "study.json"}

    resumed = quick_flap("-m", *base[:-1], *CELLS)
    assert resumed.stderr.count("done already") == 4, resumed.stdout + resumed.stderr
