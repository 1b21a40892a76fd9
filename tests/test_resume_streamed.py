"""A streamed run that is killed in either pass goes on from the last finished layer, to the same bytes."""

import signal
from pathlib import Path

import pytest

from tests.killed import MOMENTS, start
from tests.runs import tiny

RUN = [f"run {i}" for i in range(4)]
WRITE = [f"write {i}" for i in range(4)]
# What the start that is killed has noted, and what is left to the next one.
DONE = dict(zip(MOMENTS, [RUN[:3], RUN + WRITE[:2], RUN + WRITE], strict=True))
LEFT = dict(zip(MOMENTS, [RUN[2:] + WRITE, WRITE[2:], []], strict=True))


@pytest.fixture(scope="module")
def arguments(model_dir: Path, text_file: Path) -> list[str]:
    arguments = [one for one in tiny(model_dir, text_file) if not one.startswith("eval")]
    return [*arguments, "eval=[none]", "model.placement=stream", "cache_dir=cache", "ratio=0.4"]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(folder, arguments) == (0, RUN + WRITE)
    return written(folder)


def written(folder: Path) -> dict[str, bytes]:
    """All files of the checkpoint, and the plan; relative paths make runs of different folders alike."""
    files = [folder / "run" / "plan.json", *(folder / "run" / "checkpoint").iterdir()]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on(moment: str, arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert start(tmp_path, arguments, killed_at=moment) == (-signal.SIGKILL, DONE[moment])
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert start(tmp_path, arguments) == (0, LEFT[moment])
    assert written(tmp_path) == undisturbed
    left = {path.name for folder in (tmp_path / "run", tmp_path / "cache" / "streams") for path in folder.iterdir()}
    left = {name for name in left if not name.endswith(".lock")}
    assert left == {"checkpoint", "layers.png", "plan.json", "report.json", "report.md"}


def test_a_layer_that_was_pruned_for_the_next_one_to_see_is_pruned_alike(arguments: list[str], tmp_path: Path) -> None:
    """Wanda-sp runs each layer twice, as it was and as it became; here a kill falls between the two."""
    arguments = [*arguments, "method=wanda_sp"]
    assert start(tmp_path / "undisturbed", arguments) == (0, sorted(RUN * 2) + WRITE)
    first, *_ = MOMENTS
    assert start(tmp_path / "killed", arguments, killed_at=first) == (-signal.SIGKILL, ["run 0", "run 0", "run 1"])
    assert start(tmp_path / "killed", arguments) == (0, sorted(RUN[1:] * 2) + WRITE)
    assert written(tmp_path / "killed") == written(tmp_path / "undisturbed")
