"""How far a model can be pruned for one's own prompts: `python examples/answers.py PROMPTS FOLDER [key=value ...]`.

PROMPTS is a .jsonl file, a line {"prompt": "…", "answer": "…"}, or {"messages": […]} that end with the answer.
"""

import subprocess
import sys
from pathlib import Path

import pandas

SWEEP = ["ratio=0.05,0.1,0.15,0.2", "eval=[generation]", "checkpoint.save=false"]
MATCH = "generation/exact_match"


def main(prompts: str, folder: str, *overrides: str) -> None:
    tasks = f"eval.generation.tasks=[{prompts}]"
    command = [sys.executable, "-m", "flap", "-m", *SWEEP, tasks, f"hydra.sweep.dir={folder}", *overrides]
    subprocess.run(command, check=True)
    cells = pandas.read_csv(Path(folder) / "study.csv").sort_values("ratio")
    dense, error = cells[[f"dense/{MATCH}", f"dense/{MATCH}_stderr"]].iloc[0]
    print(f"dense: {dense:.3f} ± {error:.3f}")
    for ratio, match, error in cells[["ratio", f"pruned/{MATCH}", f"pruned/{MATCH}_stderr"]].itertuples(index=False):
        print(f"{ratio:g}: {match:.3f} ± {error:.3f}")
    print(Path(folder, "index.html").resolve().as_uri())


if __name__ == "__main__":
    main(*sys.argv[1:])
