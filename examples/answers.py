"""Find out how far a model can be pruned for your own prompts.

    python examples/answers.py PROMPTS FOLDER [key=value ...]

PROMPTS is a .jsonl file. Each line of this file is {"prompt": "…", "answer": "…"}, or {"messages":
[…]}, where the last message is the answer. Two of every three lines become calibration prompts,
which the model answers itself. The script asks the prompts of the other lines before and after
pruning, and compares the model's answers with the right answers. The results are written to FOLDER.

The calibration prompts and their answers must fill all calibration windows. If you pass
calibration.num_samples=16, a few hundred lines in PROMPTS are enough to fill the 16 windows (the
default is 128 windows).
"""

import subprocess
import sys
from pathlib import Path

import pandas

SWEEP = ["ratio=0.05,0.1,0.15,0.2", "eval=[generation]", "checkpoint.save=false"]
# The evaluation uses no few-shot examples, so that its prompts have the same form as the
# calibration prompts.
FORM = ["calibration.answers=self", "eval.generation.num_fewshot=0"]
SHOWN = [
    "ratio",
    *(
        f"{which}/generation/exact_match{end}"
        for which in ("dense", "pruned")
        for end in ("", "_stderr")
    ),
]


def main(prompts: str, folder: str, *overrides: str) -> None:
    rows = list(
        dict.fromkeys(row for row in Path(prompts).read_bytes().split(b"\n") if row.strip())
    )
    parts = Path(f"{folder}_prompts")
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "asked.jsonl").write_bytes(b"\n".join(rows[2::3]))
    (parts / "calibration.jsonl").write_bytes(
        b"\n".join(row for n, row in enumerate(rows) if n % 3 < 2)
    )
    texts = (
        f"eval.generation.tasks=[{parts}/asked.jsonl]",
        f"calibration.dataset={parts}/calibration.jsonl",
    )
    command = [
        sys.executable,
        "-m",
        "flap",
        "-m",
        *SWEEP,
        *FORM,
        *texts,
        f"hydra.sweep.dir={folder}",
        *overrides,
    ]
    if code := subprocess.run(command).returncode:
        sys.exit(code)
    table = pandas.read_csv(Path(folder) / "study.csv").sort_values("ratio").reindex(columns=SHOWN)
    print(table.round(3).to_string(index=False))
    print(Path(folder, "index.html").resolve().as_uri())


if __name__ == "__main__":
    main(*sys.argv[1:])
