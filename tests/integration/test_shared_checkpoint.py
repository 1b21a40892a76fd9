"""After two runs have written to the same checkpoint.dir, all files in it are from the same run."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from safetensors.torch import load_file

from flap.results import Report
from flap.storage import read_state
from tests.helpers.forked import command_line

SECONDS = 600  # the longest time, in seconds, that the first run waits for the second run


def stop_at(module: str, name: str, folder: Path) -> None:
    """Make this run, which is the first of two runs, pause when it calls the function `name`.

    This run goes on as soon as the second run either has ended or has begun to wait for this run.

    module: the name of the module that contains the function.
    """
    original = getattr(import_module(module), name)

    def stopped(*given: Any) -> Any:
        (folder / "first is there").touch()
        log = folder / "second" / "flap.log"
        end = time.monotonic() + SECONDS
        while read_state(folder / "second") not in ("finished", "failed"):
            if log.is_file() and "waiting for another run" in log.read_text():
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        return original(*given)

    setattr(import_module(module), name, stopped)


def both(
    folder: Path, arguments: list[str], stop: Callable[[], None]
) -> list["CompletedProcess[str]"]:
    """Start two runs with the same checkpoint.dir, the second run while the first is paused."""
    shared = (*arguments, "checkpoint.dir=ck", "checkpoint.overwrite=true")

    def run(name: str, ratio: float, before: Callable[[], None] | None) -> Any:
        # The two runs have separate caches, as if they ran on two machines.
        own = (f"ratio={ratio}", f"hydra.run.dir={name}", f"cache_dir=cache-{name}")
        return command_line(folder, *shared, *own, before=before)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, "first", 0.2, stop)
        end = time.monotonic() + SECONDS
        while not (folder / "first is there").exists():
            assert time.monotonic() < end and not first.done(), first.result().stderr
            time.sleep(0.05)
        second = pool.submit(run, "second", 0.4, None)
        return [first.result(), second.result()]


def assert_of_one_run(checkpoint: Path) -> float:
    """Check that all files of a checkpoint are from one run, and return the ratio of this run."""
    label = json.loads((checkpoint / "flap.json").read_text())
    ratio = float(label["provenance"]["config"]["ratio"])
    tensors: dict[str, Any] = {}
    for file in checkpoint.glob("*.safetensors"):
        tensors |= load_file(file)
    for i, layer in enumerate(label["plan"]["layers"]):
        weight_OI = tensors[f"model.layers.{i}.mlp.up_proj.weight"]
        assert len(weight_OI) == len(layer["neurons"])
    assert f"\nratio: {ratio}\n" in (checkpoint / "README.md").read_text()
    assert [path.name for path in checkpoint.parent.glob(".ck*")] == []
    return ratio


@pytest.mark.long
def test_the_card_is_of_the_run_that_wrote_the_weights(base: list[str], tmp_path: Path) -> None:
    stop = partial(stop_at, "flap.runs.reporting", "write_card", tmp_path)
    for done in both(tmp_path, base, stop):
        assert done.returncode == 0, done.stderr
    assert assert_of_one_run(tmp_path / "ck") == 0.4  # the ratio of the run that began last


@pytest.mark.long
@pytest.mark.parametrize("placement", ["device", pytest.param("stream", marks=pytest.mark.long)])
def test_each_run_measures_its_own_weights(placement: str, base: list[str], tmp_path: Path) -> None:
    """A run measures its own pruned model, although another run uses the same checkpoint.dir."""
    arguments = [*base, f"model.placement={placement}"]
    stop = partial(stop_at, "flap.pipeline", "measure_pruned", tmp_path)
    for done in both(tmp_path, arguments, stop):
        assert done.returncode == 0, done.stderr
    assert_of_one_run(tmp_path / "ck")

    alone = command_line(tmp_path, *arguments, "ratio=0.2", "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    numbers = [
        Report.load(tmp_path / name / "report.json").evaluation["pruned"]
        for name in ("first", "alone")
    ]
    assert numbers[0] == numbers[1]


def test_two_runs_that_begin_at_once_leave_one_of_them(base: list[str], tmp_path: Path) -> None:
    shared = (*base, "checkpoint.dir=new/ck", "checkpoint.overwrite=true", "eval=[none]")
    arguments = [one for one in shared if not one.startswith("eval.")]

    def run(ratio: float) -> "CompletedProcess[str]":
        return command_line(tmp_path, *arguments, f"ratio={ratio}", f"hydra.run.dir=r{ratio}")

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(run, (0.2, 0.4)):
            assert done.returncode == 0, done.stderr
    assert assert_of_one_run(tmp_path / "new" / "ck") in (0.2, 0.4)
