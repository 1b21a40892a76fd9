"""Print how well the pruned models of sweeps answer, and how well they agree with the dense model.

    python experiments/served/table.py SWEEP ...

SWEEP is the folder of a sweep, such as multirun_outputs/TIME. The table has a row for each run.
"""

import json
import sys
from pathlib import Path
from typing import Any

NAMES = (
    "sciq_answers/exact_match",
    "sciq_answers/f1",
    "triviaqa/f1",
    "hellaswag-passages/acceptance@128",
)


def cell(numbers: dict[str, float], name: str) -> str:
    """Return the measured result `name` with its standard error, or "" if it was not measured."""
    return f"{numbers[name]:.3f} ± {numbers[f'{name}_stderr']:.3f}" if name in numbers else ""


def described(report: dict[str, Any]) -> str:
    """Return the method and the ratio of a run as the name of its row."""
    config = report["config"]
    return f"{config['method']} {config['ratio']}"


def main() -> None:
    files = [file for sweep in sys.argv[1:] for file in sorted(Path(sweep).glob("*/report.json"))]
    reports = [json.loads(file.read_text()) for file in files]
    rows = [("dense", reports[0]["parameters"]["total_before"], reports[0]["evaluation"]["dense"])]
    rows += [
        (described(report), report["parameters"]["total_after"], report["evaluation"]["pruned"])
        for report in reports
    ]
    print(f"| | parameters | {' | '.join(NAMES)} |\n|---|---|{'---|' * len(NAMES)}")
    for model, parameters, numbers in rows:
        print(
            f"| {model} | {parameters / 1e6:.1f} M | "
            f"{' | '.join(cell(numbers, name) for name in NAMES)} |"
        )


if __name__ == "__main__":
    main()
