"""Measure the time of a sweep: `python benchmarks/sweep.py`.

The script runs one sweep, `python -m flap -m`, with a cache that contains no statistics. The sweep
prunes the packaged model in 24 cells: a cell is the run (the Hydra job) of one combination of 3
metrics, 4 structures and 2 ratios. In these cells, flap evaluates no model and saves no checkpoint.
The script prints three results:

- the wall-clock time of the sweep, divided by the bare time. The bare time is the time that
  `flap.prune` takes, in the process of this script, to calibrate once and to score, allocate and
  slice 24 times (target: at most 2.0);
- the average wall-clock seconds of a cell, without calibration and loading (target: under 1.5);
- the number of cells that have calibrated (target: one, because all other cells should read the
  statistics of this cell from the cache).
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from measuring import packaged

import flap

METRICS = ("IFV", "WIFV", "WIFN")
STRUCTURES = ("UL-UM", "UL-MM", "AL-MM", "AL-AM")
RATIOS = (0.2, 0.5)
GRID = [
    f"metric={','.join(METRICS)}",
    f"structure={','.join(STRUCTURES)}",
    f"ratio={','.join(map(str, RATIOS))}",
]
CELLS = len(METRICS) * len(STRUCTURES) * len(RATIOS)


def bare_seconds() -> float:
    """Return the bare time in seconds: calibrate once, and score, allocate and slice 24 times."""
    source = packaged()
    shared = ["calibration=boolq-passages"]
    total = 0.0
    for cell, (metric, structure, ratio) in enumerate(product(METRICS, STRUCTURES, RATIOS)):
        choices: dict[str, Any] = {"ratio": ratio, "metric": metric, "structure": structure}
        report = flap.prune(source.open().model, source.tokenizer, **choices, overrides=shared)
        stages = ["score", "allocate", "compress", *["calibrate"] * (cell == 0)]
        total += sum(report.seconds[stage] for stage in stages)
    return total


def sweep_seconds(folder: Path) -> float:
    """Run the sweep in a new process, and return its wall-clock seconds.

    The sweep's cache contains the packaged model, but no statistics.
    """
    cache = folder / "cache"
    cache.mkdir(parents=True)
    (cache / "models").symlink_to(Path(packaged().path).parent)
    options = [
        "eval=none",
        "checkpoint.save=false",
        f"cache_dir={cache}",
        f"hydra.sweep.dir={folder / 'sweep'}",
    ]
    command = [sys.executable, "-m", "flap", "-m", *GRID, *options]
    start = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    )
    return time.perf_counter() - start


def inside(sweep: Path) -> tuple[list[float], int]:
    """Return the wall-clock seconds of each cell, and the number of cells that have calibrated.

    sweep: the folder of the sweep. The time of a cell is the time from writing its first file to
        writing its last file, minus the time of loading and of calibration.
    """
    seconds = []
    misses = 0
    for path in sweep.glob("*/report.json"):
        report = json.loads(path.read_text())
        started = (path.parent / ".hydra" / "config.yaml").stat().st_mtime
        ended = (path.parent / "status.json").stat().st_mtime
        misses += report["statistics_cache"] == "miss"
        taken_off = report["seconds"]["load"] + report["seconds"]["calibrate"] * (
            report["statistics_cache"] == "miss"
        )
        seconds.append(ended - started - taken_off)
    return seconds, misses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    logging.disable()
    ratios = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as scratch:
            bare = bare_seconds()
            sweep = sweep_seconds(Path(scratch) / "run")
            cells, misses = inside(Path(scratch) / "run" / "sweep")
        assert len(cells) == CELLS, f"only {len(cells)} of {CELLS} cells have a report"
        ratios.append(sweep / bare)
        print(
            f"bare stages {bare:6.1f} s   sweep {sweep:6.1f} s   ratio {ratios[-1]:.2f}   "
            f"cells {statistics.mean(cells):.2f} s each on average, the first "
            f"{max(cells):.2f} s   calibrated {misses}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f} (target: at most 2.0)")


if __name__ == "__main__":
    main()
