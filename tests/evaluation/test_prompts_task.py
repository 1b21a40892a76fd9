"""A file of prompts can be a task of eval=generation.

The tests check the prompts that the model gets, where the model's answers end, and which answers
count as right.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models import huggingface
from transformers import PreTrainedTokenizerFast

from flap.data import Text
from flap.evaluation import Measurement, Task
from flap.evaluation.generation import Generation
from flap.models import Resident
from tests.cases import tiny_model
from tests.helpers.zero_shot_toys import CHAT, only_toys

ROWS = [
    {"prompt": "the cat", "answer": " sat"},
    {"prompt": "a dog", "answer": "ran, then"},
    {"prompt": "a\n", "answer": "b"},
]
ANSWERS = {"the cat": "Sat. ", "a dog": "ran"}
TALK = [
    {"role": "system", "content": "it was"},
    {"role": "user", "content": "a dog"},
    {"role": "assistant", "content": "ran"},
]


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let lm-eval find only the tasks of zero_shot_toys.py, and let flap reach no hub."""
    with only_toys(tmp_path_factory.mktemp("toys")):
        yield


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Return a list that records the prompts and options that a fake model gets.

    The fake model answers two prompts as ANSWERS says, and any other prompt with "c".
    """
    seen: list[tuple[str, dict[str, Any]]] = []

    def answers(self: Any, requests: list[Any], **_: Any) -> list[str]:
        arguments = [request.args for request in requests]
        seen.extend(arguments)
        return [ANSWERS.get(prompt, "c") for prompt, _ in arguments]

    monkeypatch.setattr(huggingface.HFLM, "generate_until", answers)
    return seen


def task_of(
    folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[Any], **options: Any
) -> Task:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [task] = Generation([str(path)], **options).prepare(tokenizer, 128)
    return task


def measured(task: Task) -> Measurement:
    return task.run(Resident(tiny_model("llama-gqa")))


def test_answers_are_judged_without_case_and_punctuation(
    asked: list[Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = task_of(tmp_path, tokenizer, ROWS, num_fewshot=0)
    assert not caplog.records
    found = measured(task)
    path = str(tmp_path / "mine.jsonl")
    assert found.documents == {
        "mine.jsonl/exact_match": [1, 0, 0],
        "mine.jsonl/f1": [1, pytest.approx(2 / 3), 0],
    }
    assert found.numbers["mine.jsonl/exact_match"] == pytest.approx(1 / 3)
    assert found.numbers["mine.jsonl/exact_match_stderr"] == pytest.approx(
        (1 / 3 * 2 / 3 / 2) ** 0.5
    )
    assert found.better == dict.fromkeys(found.documents, "higher")
    averages = Generation([path]).averages(found.numbers)
    assert averages == {f"generation/{one}": [f"mine.jsonl/{one}"] for one in ("exact_match", "f1")}
    assert sorted(text for text, _ in asked) == ["a\n", "a dog", "the cat"]
    # An answer in the file contains a comma, so a comma does not end the model's answers.
    options = {
        "until": ["\n\n", "\n", "."],
        "do_sample": False,
        "max_gen_toks": 32,
    }
    assert asked[0][1] == options
    assert task.origin.startswith("mine.jsonl, 3 prompts (sha256 ")
    assert [
        task.is_of_domain(Text("mine.jsonl", "", origin)) for origin in (path, "other/mine.jsonl")
    ] == [True, False]


def test_the_longest_answer_has_room_and_prompts_that_are_cut_for_it_are_told(
    asked: list[Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [{"prompt": "a dog " * words, "answer": "é" * 50} for words in (1, 39, 40)]
    measured(task_of(tmp_path, tokenizer, rows, num_fewshot=0))
    assert asked[0][1]["max_gen_toks"] == 50
    assert "mine.jsonl: 1 of 3 prompts lose their beginning: the context is short" in caplog.text


def test_a_row_that_the_template_refuses_is_told_before_weights_are_read(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    chatting = deepcopy(tokenizer)
    chatting.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT
    )
    with pytest.raises(
        ValueError, match=r"^eval\.generation\.chat_template=auto: .* \(none\); expected false$"
    ):
        task_of(tmp_path, chatting, [*ROWS, {"messages": TALK}], num_fewshot=0)


@pytest.mark.parametrize("in_chat", [False, True])
def test_other_examples(
    in_chat: bool, asked: list[Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    chatting = deepcopy(tokenizer)
    chatting.chat_template = CHAT if in_chat else None
    measured(task_of(tmp_path, chatting, ROWS, num_fewshot=2, limit=1))
    turn, end = (
        ("<s> user {0} </s>\n<s> assistant {1} </s>\n", "<s> a") if in_chat else ("{0} {1}\n\n", "")
    )
    shots = [turn.format("a dog", "ran, then"), turn.format("a\n", "b")]
    question = "<s> user the cat </s>\n" if in_chat else "the cat"
    assert asked[0][0] in {f"{one}{other}{question}{end}" for one, other in (shots, shots[::-1])}


@pytest.mark.parametrize("seed", range(4))
def test_no_example_repeats_the_question_that_is_asked(
    seed: int, asked: list[Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "the cat", "answer": "sat"},
        {"prompt": "the cat", "answer": "ran"},
        {"prompt": "the  cat ", "answer": "it"},
        {"prompt": "a dog", "answer": "ran"},
        {"prompt": "it was", "answer": "a dog"},
    ]
    measured(task_of(tmp_path, tokenizer, rows, num_fewshot=2, seed=seed))
    assert len(asked) == 5
    for text, _ in asked:
        *examples, question = [" ".join(turn.split()) for turn in text.split("\n\n")]
        assert len(examples) == 2
        for example in examples:
            assert not example.startswith(question)


@pytest.mark.parametrize(
    ("template", "expected"),
    [(CHAT, "<s> system it was </s>\n<s> user a dog </s>\n<s> a"), (None, "it was\n\na dog")],
)
def test_a_conversation_is_asked_without_examples(
    template: str | None,
    expected: str,
    asked: list[Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    chatting = deepcopy(tokenizer)
    chatting.chat_template = template
    task = task_of(tmp_path, chatting, [{"messages": TALK}, *ROWS], limit=1)
    measured(task)
    assert asked[0][0] == expected and task.origin.startswith(
        "mine.jsonl, 4 prompts, each asked alone (sha256 "
    )


def test_the_key_holds_the_prompts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    identity = task_of(tmp_path, tokenizer, ROWS, num_fewshot=0).identity
    assert task_of(tmp_path, tokenizer, ROWS, num_fewshot=0).identity == identity
    assert task_of(tmp_path, tokenizer, ROWS[::-1], num_fewshot=0).identity != identity


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            [ROWS[0], {"prompt": "a"}],
            "tasks=….jsonl: row 2 has no answer; expected 'answer', or 'messages' whose",
        ),
        ([{"question": "a"}], "tasks=….jsonl: no column 'messages' or 'prompt', only question"),
        (ROWS, "num_fewshot=5: mine.jsonl has 2 other prompts; expected 0 to 2"),
        (
            [*ROWS, {"prompt": "a dog ", "answer": "sat"}],
            "num_fewshot=5: mine.jsonl has 2 other prompts; expected 0 to 2",
        ),
        (
            [{"prompt": "a", "answer": "b" * 300}],
            "tasks=mine.jsonl: answers of up to 150 tokens; the context is 128",
        ),
    ],
)
def test_no_task_is_one_line(
    rows: list[Any], reason: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:
        task_of(tmp_path, tokenizer, rows)
    begin, _, rest = f"eval.generation.{reason}".partition("…")
    assert str(error.value).startswith(begin) and rest in str(error.value)
