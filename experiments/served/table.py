"""What pruned models do when they are used, from the reports of sweeps: python experiments/served/table.py SWEEP ..."""

import json
import sys
from pathlib import Path
from typing import Any

WRITTEN = ("sciq_answers/exact_match", "sciq_answers/f1", "triviaqa/f1")
ACCEPTED = ("hellaswag-passages/acceptance@128", "hellaswag-passages/tokens_per_step@128")


def cell(numbers: dict[str, float], name: str) -> str:
    """A number with its error."""
    return f"{numbers[name]:.3f} ± {numbers[f'{name}_stderr']:.3f}" if name in numbers else ""


def described(report: dict[str, Any]) -> str:
    """What distinguishes a run of these sweeps."""
    config = report["config"]
    structure, recovery = config["structure"], config["recover"]
    parts = [config["method"], str(config["ratio"])]
    parts += [
        f"{name}={structure[name]}" for name in ("layers", "min_heads") if structure.get(name, 1) not in (1, False)
    ]
    trained = [f"lora, {recovery['tokens']} tokens"] if "tokens" in recovery else []
    return " ".join(parts + trained)


def main() -> None:
    files = [file for sweep in sys.argv[1:] for file in sorted(Path(sweep).glob("*/report.json"))]
    reports = [json.loads(file.read_text()) for file in files]
    rows = [("dense", reports[0]["parameters"]["total_before"], reports[0]["evaluation"]["dense"])]
    rows += [(described(one), one["parameters"]["total_after"], one["evaluation"]["pruned"]) for one in reports]
    names = WRITTEN + ACCEPTED
    print(f"| | parameters | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for name, parameters, numbers in rows:
        print(f"| {name} | {parameters / 1e6:.1f} M | {' | '.join(cell(numbers, one) for one in names)} |")


if __name__ == "__main__":
    main()
