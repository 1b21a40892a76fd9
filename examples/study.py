"""Compare metrics at several ratios, and print the best metric for each ratio.

    python examples/study.py FOLDER [key=value ...]

The metrics are IFV and WIFV, and the best metric at a ratio is the one with the lowest perplexity.
The script writes a subfolder for each run, study.csv, plots and index.html to FOLDER. If you start
the script again with the same FOLDER, it computes only the results that are missing in FOLDER.
"""

import subprocess
import sys
from pathlib import Path

import pandas

SWEEP = ["metric=IFV,WIFV", "ratio=0.2,0.5", "checkpoint.save=false"]


def main(folder: str, *overrides: str) -> None:
    command = [sys.executable, "-m", "flap", "-m", *SWEEP, f"hydra.sweep.dir={folder}", *overrides]
    subprocess.run(command, check=True)
    cells = pandas.read_csv(Path(folder) / "study.csv")
    [quality] = [name for name in cells if "/perplexity@" in name and name.startswith("pruned/")]
    best = cells.sort_values(quality).groupby("ratio").first()
    print(best[["metric", quality]])
    print(Path(folder, "index.html").resolve().as_uri())


if __name__ == "__main__":
    main(*sys.argv[1:])
