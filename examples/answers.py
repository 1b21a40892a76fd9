"""How far a model can be pruned for one's own prompts: `python examples/answers.py PROMPTS FOLDER [key=value ...]`.

PROMPTS is a .jsonl file, a line {"prompt": "…", "answer": "…"}, or {"messages": […]} that end with the answer. On two
rows of three the model is calibrated, with answers of its own; the third is asked, before pruning and after it.
"""

import subprocess
import sys
from pathlib import Path

import pandas

SWEEP = ["ratio=0.05,0.1,0.15,0.2", "eval=[generation]", "checkpoint.save=false", "calibration.answers=self"]
MATCH = "generation/exact_match"


def main(prompts: str, folder: str, *overrides: str) -> None:
    rows, parts = Path(prompts).read_text().splitlines(keepends=True), Path(f"{folder}_prompts")
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "asked.jsonl").write_text("".join(rows[2::3]))
    (parts / "calibration.jsonl").write_text("".join(row for n, row in enumerate(rows) if n % 3 < 2))
    texts = f"eval.generation.tasks=[{parts}/asked.jsonl]", f"calibration.dataset={parts}/calibration.jsonl"
    command = [sys.executable, "-m", "flap", "-m", *SWEEP, *texts, f"hydra.sweep.dir={folder}", *overrides]
    subprocess.run(command, check=True)
    cells = pandas.read_csv(Path(folder) / "study.csv").sort_values("ratio")
    dense, error = cells[[f"dense/{MATCH}", f"dense/{MATCH}_stderr"]].iloc[0]
    print(f"dense: {dense:.3f} ± {error:.3f}")
    for ratio, match, error in cells[["ratio", f"pruned/{MATCH}", f"pruned/{MATCH}_stderr"]].itertuples(index=False):
        print(f"{ratio:g}: {match:.3f} ± {error:.3f}")
    print(Path(folder, "index.html").resolve().as_uri())


if __name__ == "__main__":
    main(*sys.argv[1:])
