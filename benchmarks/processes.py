"""What a second process brings: `python benchmarks/processes.py` (SmolLM2-135M, flap_plus).

Runs of one process and of several, of one thread each, in turns. Times are those of report.json, from the statistics
to the pruned model; nothing is measured, saved or taken from a cache. Targets, as the ratio of the medians: 1.7 times
as fast with two processes, calibration alone (--calibration: bias compensation) 1.8. Smaller windows (--samples 16
--seq-len 512) take a quarter of the time, and more of it where a layer's MLP is factorised, which one process does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

STAGES = ("calibrate", "score", "allocate", "compress")


def seconds(processes: int, overrides: list[str]) -> dict[str, float]:
    """The seconds of each stage of a run in so many processes."""
    with TemporaryDirectory() as folder:
        own = [f"hydra.run.dir={folder}", *(["processes=" + str(processes)] if processes > 1 else [])]
        command = [sys.executable, "-m", "flap", *overrides, "eval=[none]", "checkpoint.save=false", "use_cache=false"]
        subprocess.run([*command, *own], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        taken = json.loads((Path(folder) / "report.json").read_text())["seconds"]
    return {stage: taken.get(stage, 0.0) for stage in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--calibration", action="store_true", help="statistics alone, without a search")
    options = parser.parse_args()
    method = "flap" if options.calibration else "flap_plus"
    windows = [f"calibration.num_samples={options.samples}", f"calibration.seq_len={options.seq_len}"]
    overrides = [f"method={method}", "calibration=boolq-passages", *windows]
    turns = [[seconds(count, overrides) for count in (1, options.processes)] for _ in range(options.repeats)]
    print(f"| stage | 1 process, s | {options.processes} processes, s | times as fast |\n|---|---|---|---|")
    for stages in (*([stage] for stage in STAGES), list(STAGES)):
        one, several = (statistics.median(sum(turn[k][stage] for stage in stages) for turn in turns) for k in range(2))
        print(f"| {' + '.join(stages)} | {one:.1f} | {several:.1f} | {one / max(several, 1e-9):.2f} |")


if __name__ == "__main__":
    main()
