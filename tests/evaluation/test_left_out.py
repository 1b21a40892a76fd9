"""Tasks leave out documents that the run has calibrated or trained on.

A task is refused if no document remains.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models import huggingface
from transformers import PreTrainedTokenizerFast

from flap.data.overlap import ReadText
from flap.evaluation import Perplexity, Task, prepare_tasks
from flap.evaluation.base import Evaluator
from flap.evaluation.generation import Generation
from flap.evaluation.left_out import without_read
from flap.evaluation.zero_shot import ZeroShot
from flap.models import Resident
from tests.cases import tiny_model
from tests.helpers.zero_shot_toys import QUESTIONS, only_toys

ROWS = [
    {"prompt": "the cat", "answer": "sat"},
    {"prompt": "a dog", "answer": "ran"},
    {"prompt": "it was", "answer": "red"},
    {"prompt": "then the mat", "answer": "sat"},
]
WORDS = ["the cat sat on the red mat under a tree and then it ran", "a dog was on the new blue mat"]


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let lm-eval find only the tasks of zero_shot_toys.py, and let flap reach no hub."""
    with only_toys(tmp_path_factory.mktemp("toys")):
        yield


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that records the prompts of a fake model, which always writes "sat"."""
    seen: list[str] = []

    def answers(self: Any, requests: list[Any], **_: Any) -> list[str]:
        seen.extend(request.args[0] for request in requests)
        return ["sat"] * len(requests)

    monkeypatch.setattr(huggingface.HFLM, "generate_until", answers)
    return seen


def read(*texts: str, use: str = "calibration", section: str = "calibration") -> ReadText:
    return ReadText(use, f"{section}.dataset=read.jsonl", texts)


def tasks(evaluator: Evaluator, tokenizer: PreTrainedTokenizerFast, *texts: ReadText) -> list[Task]:
    return without_read(prepare_tasks({"mine": evaluator}, tokenizer, 128), texts)


def written(folder: Path, name: str, rows: list[dict[str, str]]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_that_were_read_are_neither_asked_nor_examples(
    asked: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    evaluator = Generation([written(tmp_path, "mine.jsonl", ROWS)], num_fewshot=2)
    [task] = tasks(evaluator, tokenizer, read("a dog"))
    assert task.left_out == (1,)
    task.run(Resident(tiny_model("llama-gqa")))
    assert {text.split("\n\n")[-1] for text in asked} == {"the cat", "it was", "then the mat"}
    assert len(asked) == 3
    assert not any("a dog" in text for text in asked)

    [whole] = tasks(evaluator, tokenizer, read("nothing of it"))
    [other] = tasks(evaluator, tokenizer, read("it was"))
    identities = [dict(one.identity) for one in (task, whole, other)]
    assert identities[0] != identities[1] != identities[2] != identities[0]
    assert whole.left_out == () and "left_out" not in whole.identity


def test_rows_of_one_question_are_left_out_together(
    asked: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [*ROWS, {"prompt": "the  cat", "answer": "ran"}]
    evaluator = Generation([written(tmp_path, "mine.jsonl", rows)], num_fewshot=0)
    [task] = tasks(evaluator, tokenizer, read("the cat"))
    assert task.left_out == (0, 4)
    task.run(Resident(tiny_model("llama-gqa")))
    assert sorted(asked) == ["a dog", "it was", "then the mat"]


def test_documents_of_lm_eval_that_were_read_are_not_asked(
    asked: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    questions = QUESTIONS["animals"]
    [task] = tasks(Generation(["written"], num_fewshot=0), tokenizer, read(questions[3]))
    assert task.left_out == (3,)
    task.run(Resident(tiny_model("llama-gqa")))
    assert sorted(asked) == sorted([*questions[:3], *questions[4:]])


def test_documents_that_were_read_are_no_examples(
    asked: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Documents that the run has calibrated on do not become few-shot examples.

    The task `written` has only test documents, so lm-eval draws few-shot examples from them.
    """
    questions = QUESTIONS["animals"]
    [task] = tasks(Generation(["written"], num_fewshot=4), tokenizer, read(questions[0]))
    task.run(Resident(tiny_model("llama-gqa")))
    assert len(asked) == 5
    for text in asked:
        assert sorted(turn.removesuffix(" cat") for turn in text.split("\n\n")) == sorted(
            questions[1:]
        )


def test_a_group_leaves_documents_of_each_task_out(tokenizer: PreTrainedTokenizerFast) -> None:
    [task] = tasks(ZeroShot(["pair"]), tokenizer, read(QUESTIONS["animals"][4], "under the old"))
    assert task.left_out == (4, 7)
    found = task.run(Resident(tiny_model("llama-gqa")))
    assert len(found.documents["animals/acc"]) == 5 and len(found.documents["places/acc"]) == 1


def test_documents_of_a_text_that_were_read_are_not_measured(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = written(tmp_path, "mine.jsonl", [{"text": text} for text in WORDS])
    [task] = tasks(Perplexity([whole], seq_len=8), tokenizer, read(f"so {WORDS[0]}"))
    assert task.left_out == (0,)
    alone = written(tmp_path, "alone.jsonl", [{"text": WORDS[1]}])
    [expected] = tasks(Perplexity([alone], seq_len=8), tokenizer)
    assert task.identity == expected.identity and task.name == "mine.jsonl/perplexity@8"


def test_a_running_text_stays_whole(tokenizer: PreTrainedTokenizerFast, text_file: Path) -> None:
    [task] = tasks(Perplexity([str(text_file)]), tokenizer, read(text_file.read_text()))
    assert task.left_out == ()


@pytest.mark.parametrize(
    ("evaluator", "options", "rows", "name"),
    [
        (Generation, {"num_fewshot": 0}, ROWS, "eval.generation.tasks"),
        (
            Perplexity,
            {"seq_len": 8},
            [{"text": text} for text in WORDS],
            "eval.perplexity.datasets",
        ),
    ],
)
def test_a_task_without_documents_is_refused(
    evaluator: type[Evaluator],
    options: dict[str, int],
    rows: list[dict[str, str]],
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "mine.jsonl", rows)
    first, *others = [next(iter(row.values())) for row in rows]
    texts = (read(first), read(*others, use="recovery", section="recover"))
    with pytest.raises(ValueError) as error:
        tasks(evaluator([path], **options), tokenizer, *texts)
    assert str(error.value) == (
        f"{name}=mine.jsonl: all {len(rows)} documents were read for calibration "
        "(calibration.dataset=read.jsonl) and recovery (recover.dataset=read.jsonl); "
        "nothing is left to measure; "
        "choose another task or another text"
    )


@pytest.mark.parametrize(
    ("evaluator", "texts", "expected"),
    [
        (
            Generation(["written"]),
            QUESTIONS["animals"][:2],
            "eval.generation.num_fewshot=5: written has 3 other documents; expected 0 to "
            "3; 2 of 6 documents are "
            "left out, as they were read for calibration (calibration.dataset=read.jsonl)",
        ),
        (
            ZeroShot(["pair"]),
            QUESTIONS["places"],
            "eval.zero_shot.tasks=pair: no document of places is left; 2 of 8 documents "
            "are left out, as they were "
            "read for calibration (calibration.dataset=read.jsonl)",
        ),
    ],
)
def test_too_few_documents_are_refused(
    evaluator: Evaluator, texts: list[str], expected: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError) as error:
        tasks(evaluator, tokenizer, read(*texts))
    assert str(error.value) == expected


def test_a_text_of_which_too_little_is_left_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = written(tmp_path, "mine.jsonl", [{"text": text} for text in WORDS])
    with pytest.raises(
        ValueError,
        match=r"^eval\.perplexity\.datasets=mine\.jsonl: its 8 tokens do not fill one window of "
        r"12; "
        r"1 of 2 documents are left out, as they were read for calibration "
        r"\(calibration\.dataset=read\.jsonl\)$",
    ):
        tasks(Perplexity([path], seq_len=12), tokenizer, read(WORDS[0]))
