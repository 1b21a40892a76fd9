"""Compare how fast llama.cpp processes prompts and generates tokens with several GGUF files.

    python benchmarks/llama_speed.py DENSE.gguf OTHER.gguf ...

The script needs the wheel xllamacpp. In each round, the script sends one prompt to each model in
turn, so that slow moments of a shared machine affect all models alike. For each file, the script
prints the median speeds on one thread in tokens per second. It also divides each speed by the speed
with the first file in the same round, and prints the medians of these ratios.
"""

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

from llama_server import complete, serve

PROMPT = 256  # number of tokens in a prompt
NEW_TOKENS = 64
# Prompts consist of tokens with these ids, which also exist in a trimmed vocabulary.
IDS = range(1000, 10_000)
# llama.cpp's server reports its speeds under these names.
SPEEDS = ("prompt_per_second", "predicted_per_second")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    servers = [serve(file, PROMPT + NEW_TOKENS) for file in options.files]
    rounds = []
    for number in range(options.rounds + 1):
        prompt = random.Random(number).sample(IDS, PROMPT)
        rounds.append([speeds(server, prompt) for server in servers])
    del rounds[0]  # the first round is a warm-up, in which servers are slower

    for index, file in enumerate(options.files):
        print(file, *(summary(rounds, index, speed) for speed in SPEEDS), sep="\t")


def speeds(server: Any, prompt: list[int]) -> dict[str, float]:
    """Return the speeds of reading a prompt and of generating tokens, in tokens per second."""
    question = {
        "prompt": prompt,
        "n_predict": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    timings = complete(server, question)["timings"]
    return {speed: timings[speed] for speed in SPEEDS}


def summary(rounds: list[list[dict[str, float]]], index: int, speed: str) -> str:
    """Return the median speed of a file, and its median ratio to the speed of the first file."""
    found = [one[index][speed] for one in rounds]
    ratios = [one[index][speed] / one[0][speed] for one in rounds]
    return f"{speed} {statistics.median(found):.1f} ({statistics.median(ratios):.2f}x)"


if __name__ == "__main__":
    main()
