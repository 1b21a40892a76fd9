"""If one process of a run fails, all processes of the run end.

test_same_result.py tests the results of runs with several processes.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import flap.method.calibration.recorder
from flap.pipeline import run
from tests.helpers.marks import quick
from tests.helpers.ranks import command_line_in_ranks
from tests.helpers.runs import composed, tiny

SEARCH = "method=flap_plus"


def out_of_memory() -> None:
    """Make calibration raise an out-of-memory error in the second process, but not in the first."""

    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    if os.environ["RANK"] == "1":
        flap.method.calibration.recorder.batch_statistics = fail


@pytest.mark.parametrize(
    ("override", "before", "line"),
    quick(
        2,
        [
            ("ratio=2", None, "ratio=2.0: expected a number with 0 <= ratio < 1"),
            (
                "calibration.num_samples=1",
                None,
                "calibration.num_samples=1: expected 2 windows or more",
            ),
            (
                "model.placement=auto",
                None,
                "model.placement=auto: expected device or stream with several processes",
            ),
            (
                "calibration.dataset=words.txt",
                None,
                "rank 1 on .*: the content of calibration is not as on rank 0",
            ),
            (
                "use_cache=false",
                out_of_memory,
                "rank 1 on .*: OutOfMemoryError: out of memory; smaller batches take less; dry_run",
            ),
        ],
    ),
)
def test_what_one_process_cannot_do_ends_all_with_one_line(
    override: str,
    before: Callable[[], None] | None,
    line: str,
    model_dir: Path,
    text_file: Path,
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder, animal in zip(folders, ("cat", "dog"), strict=True):
        folder.mkdir()
        (folder / "words.txt").write_text(f"the {animal} sat on a mat " * 500)
    options = ["hydra.run.dir=../run", f"cache_dir={tmp_path / 'cache'}", "eval=[none]"]
    done = command_line_in_ranks(
        folders, *tiny(model_dir, text_file)[:-2], *options, override, before=before
    )
    assert [one.returncode for one in done] == [1, 1]
    said = [
        text for one in done for text in (one.stdout + one.stderr).splitlines() if "error:" in text
    ]
    assert re.search(line, said[-1]) and len(said) == 1, said


TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "-m",
    "flap",
]


def environment_with(temporary: Path) -> dict[str, str]:
    temporary.mkdir()
    return os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}


@pytest.mark.long
def test_torchrun_goes_through_the_cells_of_a_sweep(base: list[str], tmp_path: Path) -> None:
    arguments = [*base, "checkpoint.save=false", "hydra.sweep.dir=sweep", "ratio=0.2,1.5,0.4"]
    environment = environment_with(tmp_path / "temporary")
    done = subprocess.run(
        [*TORCHRUN, "-m", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    [said] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 1 and said.startswith("error: cell 2 of 3: ratio=1.5: ")
    reports = sorted(tmp_path.glob("sweep/*/report.json"))
    assert [json.loads(path.read_text())["config"]["ratio"] for path in reports] == [0.2, 0.4]
    assert (tmp_path / "sweep" / "index.html").is_file()
    assert not list((tmp_path / "temporary").glob("flap-*"))


@pytest.mark.long
def test_a_killed_process_ends_all_and_the_same_command_goes_on(
    base: list[str], tmp_path: Path
) -> None:
    options = [
        "ratio=0.4",
        "calibration.num_samples=64",
        "eval=[none]",
        "checkpoint.save=false",
        *SEARCH.split(),
    ]
    own = ["hydra.run.dir=run", "cache_dir=cache", "structure.tokens=1024", "run_name=test"]
    arguments = [*base[:-2], *options]
    command = [*TORCHRUN, *arguments, *own]
    environment = environment_with(tmp_path / "temporary")
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as started:
        while not list((tmp_path / "cache" / "streams").glob("*/score/scores-1")):
            assert started.poll() is None, started.stderr and started.stderr.read()
            time.sleep(0.002)
        children = psutil.Process(started.pid).children(recursive=True)
        [one] = [one for one in children if one.environ().get("RANK") == "1"]
        one.send_signal(signal.SIGKILL)
        _, said = started.communicate(timeout=60)
    assert started.returncode == 1 and len(re.findall("^error: ", said, re.MULTILINE)) <= 1, said
    assert not psutil.wait_procs(children, timeout=5)[1]
    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stderr
    run(
        composed(*arguments, f"cache_dir={tmp_path / 'other'}", "structure.tokens=1024"),
        tmp_path / "one",
    )
    plans = [json.loads((tmp_path / folder / "plan.json").read_text()) for folder in ("run", "one")]
    assert plans[0]["layers"] == plans[1]["layers"]
