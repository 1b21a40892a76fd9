"""Write prompts of short sums for calibration, and long texts that a model is asked to repeat.

    python experiments/answers/abilities.py FOLDER

The script writes four files to FOLDER.

sums.jsonl: 400 prompts for calibration. Each prompt has five sums with their results, and a
sixth sum without a result.

repeat_40.jsonl, repeat_80.jsonl and repeat_160.jsonl: 50 documents for evaluation in each
file. A document asks a model to repeat the first 40, 80 or 160 words of a passage of BoolQ. No
calibration text contains these passages.
"""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flap.data.named_texts import for_evaluation, rows

NUM_PROMPTS = 400
SOLVED = 5  # number of solved sums in a calibration prompt
LENGTHS = (40, 80, 160)  # lengths of the texts to be repeated, in words
NUM_TEXTS = 50


def main(folder: Path) -> None:
    generator = random.Random(20261202)
    write(folder / "sums.jsonl", (sums(generator) for _ in range(NUM_PROMPTS)))

    passages = long_passages()
    for length in LENGTHS:
        write(folder / f"repeat_{length}.jsonl", (repetition(one, length) for one in passages))


def sums(generator: random.Random) -> dict[str, Any]:
    """Return a prompt with solved sums, followed by a sum without a result."""
    messages = []
    for _ in range(SOLVED):
        question, result = a_sum(generator)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": result})
    question, _ = a_sum(generator)
    messages.append({"role": "user", "content": question})
    return {"messages": messages}


def a_sum(generator: random.Random) -> tuple[str, str]:
    """Return a question for a sum, a difference or a product of small numbers, and its result."""
    kind = generator.choice(["story", "-", "x", "+"])
    first = generator.randrange(1, 100)
    second = generator.randrange(1, 100)
    if kind == "story":
        question = f"Tom has {first} coins and finds {second} more."
        question += " How many coins does Tom have now?"
        result = first + second
    elif kind == "-":
        result = abs(first - second)
        question = f"Work out {max(first, second)} - {min(first, second)}."
    elif kind == "x":
        first = generator.randrange(2, 13)
        second = generator.randrange(2, 13)
        question = f"Work out {first} x {second}."
        result = first * second
    else:
        question = f"Work out {first} + {second}."
        result = first + second
    return f"{question}\nAnswer:", str(result)


def long_passages() -> list[str]:
    """Return passages of BoolQ for evaluation that have at least max(LENGTHS) words."""
    documents, _ = rows("boolq-passages", "boolq", "google/boolq", ["passage"])
    found = []
    for document in documents:
        passage = " ".join(document["passage"].split())
        is_long = len(passage.split()) >= max(LENGTHS)
        if is_long and for_evaluation(document["passage"]) and passage not in found:
            found.append(passage)
    return found[:NUM_TEXTS]


def repetition(passage: str, length: int) -> dict[str, str]:
    """Return a document that asks a model to repeat the first `length` words of a passage."""
    text = " ".join(passage.split()[:length])
    return {"prompt": f"Repeat this text word by word:\n\n{text}", "answer": text}


def write(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    """Write documents to a file, one in each line."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
