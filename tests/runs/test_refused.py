"""A refused command removes the files that it has created, and leaves all earlier files."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from flap.storage import read_state
from tests.helpers.marks import quick

Cli = Callable[..., "CompletedProcess[str]"]
EARLY = "ratio=2"  # an error that is found when the config is checked
LATE = "calibration.dataset=absent.txt"  # an error that is found when the texts are read
FIRST = "structure=FOO"  # an error that is found while Hydra composes the config


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("place", [[], ["hydra.run.dir=a/b/c"]], ids=["outputs", "named"])
@pytest.mark.parametrize("mistake", [FIRST, EARLY, LATE])
def test_a_refused_run_leaves_nothing(
    mistake: str, place: list[str], quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    assert quick_flap(*base, mistake, *place).returncode == 1
    assert everything(tmp_path) == set()


def test_a_refused_run_in_a_process_of_its_own_leaves_nothing(flap: Cli, tmp_path: Path) -> None:
    assert flap(EARLY).returncode == 1
    assert everything(tmp_path) == set()


def test_a_refused_sweep_leaves_nothing(quick_flap: Cli, tmp_path: Path) -> None:
    assert quick_flap("-m", "metric=FOO,WIFV").returncode == 1
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("files", [[], ["notes.txt"]], ids=["empty", "in use"])
def test_a_folder_above_stays_if_it_was_there(
    files: list[str], quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    (tmp_path / "outputs").mkdir()
    for name in files:
        (tmp_path / "outputs" / name).write_text("mine")
    there = everything(tmp_path)
    assert quick_flap(*base, EARLY).returncode == 1
    assert everything(tmp_path) == there


@pytest.mark.parametrize("mistake", quick(1, [EARLY, LATE]))
def test_files_of_another_program_stay(
    mistake: str, quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    """If another program has written .hydra and flap.log to the run's folder, these files stay."""
    files = {".hydra/config.yaml": "lr: 1", "flap.log": "a line\n", "notes.txt": "mine"}
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "run" / name).write_text(text)
    there = everything(tmp_path)

    assert quick_flap(*base, mistake, "hydra.run.dir=run").returncode == 1
    assert everything(tmp_path) == there
    log = (tmp_path / "run" / "flap.log").read_text()
    assert log.startswith("a line\n") and "expected" in log
    for name in (".hydra/config.yaml", "notes.txt"):
        assert (tmp_path / "run" / name).read_text() == files[name]

    assert quick_flap(*base, "hydra.run.dir=run", "checkpoint.save=false").returncode == 0
    assert "ratio: " in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()


def test_an_empty_folder_stays(quick_flap: Cli, base: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert quick_flap(*base, EARLY, "hydra.run.dir=run").returncode == 1
    assert everything(tmp_path) == {"run"}


def test_in_the_folder_of_a_run_that_failed_it_is_noted(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    status = tmp_path / "run" / "status.json"
    status.parent.mkdir()
    status.write_text('{"schema": 1, "state": "failed", "error": "MemoryError"}')
    assert quick_flap(*base, EARLY, "hydra.run.dir=run").returncode == 1
    assert read_state(tmp_path / "run") == "failed"
    assert "ratio=2.0: expected" in json.loads(status.read_text())["error"]
