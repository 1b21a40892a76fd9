"""Two sweeps that share a cache, at the same time or one after the other, repeat no work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """Start a sweep in a folder.

    The cache is in the parent of this folder, so that sweeps in sibling folders share it.
    """
    folder.mkdir(exist_ok=True)
    cache = folder.parent / "cache"
    places = ["hydra.sweep.dir=sweep", f"cache_dir={cache}", "checkpoint.save=false"]
    return subprocess.Popen(
        [sys.executable, "-m", "flap", "-m", *arguments, *places],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def assert_succeeds(sweep: subprocess.Popen[str]) -> None:
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors


def report_of(cell: Path) -> dict[str, Any]:
    return json.loads((cell / "report.json").read_text())


@pytest.mark.long
def test_two_sweeps_calibrate_once_and_measure_the_dense_model_once(
    base: list[str], tmp_path: Path
) -> None:
    first = start(tmp_path / "first", [*base, "ratio=0.2,0.4"])
    second = start(tmp_path / "second", [*base, "ratio=0.4,0.6"])
    assert_succeeds(first)
    assert_succeeds(second)

    reports = [report_of(file.parent) for file in tmp_path.glob("*/sweep/*/report.json")]
    found_in_cache = [report["statistics_cache"] for report in reports]
    assert sorted(found_in_cache) == ["hit", "hit", "hit", "miss"]
    [_] = (tmp_path / "cache" / "statistics").glob("*/entry.json")

    evaluations = [report["evaluation"] for report in reports]
    for evaluation in evaluations:
        assert evaluation["dense"] == evaluations[0]["dense"]
    one, other = [report for report in reports if report["ratio"]["requested"] == 0.4]
    assert one["evaluation"] == other["evaluation"]


@pytest.mark.long
def test_a_killed_cell_comes_back_under_another_job_number(base: list[str], tmp_path: Path) -> None:
    """If a sweep is repeated with more ratios, the runs are renumbered, but a killed run is found.

    flap recognises the pruned model of the killed run by the key in pruned.json.
    """
    arguments = [*base, "metric=WIFV"]
    assert_succeeds(start(tmp_path / "first", [*arguments, "ratio=0.4"]))
    [cell] = (tmp_path / "first" / "sweep").glob("0_*")
    # Without these files, the folder is as if the run was killed while it wrote its report.
    (cell / "report.json").unlink()
    (cell / "status.json").unlink()

    pruned = cell / "pruned.json"
    made = pruned.stat().st_mtime_ns
    assert_succeeds(start(tmp_path / "first", [*arguments, "ratio=0.2,0.4"]))
    assert report_of(cell)["ratio"]["requested"] == 0.4
    assert pruned.stat().st_mtime_ns == made
