"""How far a model can be pruned for one's own prompts: `python examples/answers.py PROMPTS FOLDER [key=value ...]`.

PROMPTS: a .jsonl file, lines {"prompt": "…", "answer": "…"} or {"messages": […]} that end with the answer. The model is
calibrated on two rows of three, with answers of its own; the third is asked, before pruning and after it.
"""

import subprocess
import sys
from pathlib import Path

import pandas

SWEEP = ["ratio=0.05,0.1,0.15,0.2", "eval=[generation]", "checkpoint.save=false", "calibration.answers=self"]
SHOWN = ["ratio", *(f"{which}/generation/exact_match{end}" for which in ("dense", "pruned") for end in ("", "_stderr"))]


def main(prompts: str, folder: str, *overrides: str) -> None:
    rows, parts = Path(prompts).read_text().splitlines(keepends=True), Path(f"{folder}_prompts")
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "asked.jsonl").write_text("".join(rows[2::3]))
    (parts / "calibration.jsonl").write_text("".join(row for n, row in enumerate(rows) if n % 3 < 2))
    texts = f"eval.generation.tasks=[{parts}/asked.jsonl]", f"calibration.dataset={parts}/calibration.jsonl"
    command = [sys.executable, "-m", "flap", "-m", *SWEEP, *texts, f"hydra.sweep.dir={folder}", *overrides]
    subprocess.run(command, check=True)
    print(pandas.read_csv(Path(folder) / "study.csv").sort_values("ratio")[SHOWN].round(3).to_string(index=False))
    print(Path(folder, "index.html").resolve().as_uri())


if __name__ == "__main__":
    main(*sys.argv[1:])
