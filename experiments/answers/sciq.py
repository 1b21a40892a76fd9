"""Prompts of SciQ that are never measured on, five examples each: `python experiments/answers/sciq.py sciq.jsonl`."""

import json
import sys
from pathlib import Path

from flap.data.named_texts import for_evaluation, rows

TURNS = 6  # the last one is asked


def turns() -> list[tuple[str, str]]:
    """What is asked, and the right answer, of each document that has a passage for calibration."""
    documents = rows(
        "sciq-passages", "sciq", "allenai/sciq", ["support", "question", "correct_answer"]
    )[0]
    passages = (
        one for one in documents if one["support"].strip() and not for_evaluation(one["support"])
    )
    return [
        (f"{one['support'].lstrip()}\nQuestion: {one['question']}\nAnswer:", one["correct_answer"])
        for one in passages
    ]


def prompt(some: list[tuple[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Turns as a conversation without the last answer."""
    pairs = [
        ({"role": "user", "content": ask}, {"role": "assistant", "content": answer})
        for ask, answer in some
    ]
    return {"messages": [turn for pair in pairs for turn in pair][:-1]}


if __name__ == "__main__":
    asked = turns()
    prompts = [prompt(asked[at : at + TURNS]) for at in range(0, len(asked) - TURNS + 1, TURNS)]
    Path(sys.argv[1]).write_text("".join(json.dumps(one) + "\n" for one in prompts))
