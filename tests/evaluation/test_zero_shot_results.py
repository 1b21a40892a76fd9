"""Margins and F1 are computed for all formats in which lm-eval's tasks state the right answers.

The margin is the log-likelihood of the likeliest right choice minus the log-likelihood of the
likeliest wrong choice. The values of individual documents are recorded only if the result of a task
is their mean.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from flap.evaluation.zero_shot_results import by_document, f1, margin

ANSWERS = [(-4.0, False), (-1.0, True), (-3.0, False)]


def task(gold: Any, multiple_input: int = 0, **changes: Any) -> Any:
    """Return a task with three answer choices.

    gold: the right choice or choices, by index or by text.
    multiple_input: an attribute of lm-eval's tasks. If it is 0, `doc_to_target` returns the right
        choices. Otherwise, `doc_to_text` returns them.
    """
    found = {
        "OUTPUT_TYPE": "multiple_choice",
        "config": SimpleNamespace(process_results=None, filter_list=None),
        "multiple_input": multiple_input,
        "doc_to_choice": lambda document: ["aaaa", "bb", "c"],
        "doc_to_target": lambda document: "the end" if multiple_input else gold,
        "doc_to_text": lambda document: gold if multiple_input else "the question",
    }
    return SimpleNamespace(**found | changes)


def entries(*filters: str, answers: list[tuple[float, bool]] = ANSWERS) -> list[dict[str, Any]]:
    return [{"doc": {}, "filter": name, "filtered_resps": answers} for name in filters]


@pytest.mark.parametrize(
    ("gold", "normalised", "expected"),
    [
        (1, False, 2.0),
        (0, False, -3.0),
        ("c", False, -2.0),
        ([0, 2], False, -2.0),
        (["bb", "c"], False, 3.0),
        (1, True, 0.5),
        (2, True, -2.5),
        (0, True, -0.5),
    ],
)
def test_right_choices_against_the_best_of_the_others(
    gold: Any, normalised: bool, expected: float
) -> None:
    for multiple_input in (0, 3):
        found = margin("mine", task(gold, multiple_input), entries("none", "none"), normalised)
        assert found.numbers == {"mine/margin": expected, "mine/margin_stderr": 0.0}
        assert found.documents == {"mine/margin": [expected, expected]}


def test_answers_without_a_question_and_other_filters_are_not_looked_at() -> None:
    unconditional = [*ANSWERS, (0.0, True), (0.0, True), (0.0, True)]
    found = margin("mine", task(1), entries("none", "other", answers=unconditional), False)
    assert found.documents == {"mine/margin": [2.0]}


@pytest.mark.parametrize(
    "other",
    [
        task(-100),
        task("neither"),
        task([0, 1, 2]),
        task(1, OUTPUT_TYPE="generate_until"),
        task(1, config=SimpleNamespace(process_results=print)),
    ],
)
def test_where_there_is_no_margin(other: Any) -> None:
    assert margin("mine", other, entries("none"), False).numbers == {}
    assert margin("mine", task(1), [], False).numbers == {}


def test_documents_belong_to_numbers_that_are_their_means() -> None:
    samples = {
        "mine": [
            {
                "filter": "none",
                "metrics": ["acc", "f1", "perplexity"],
                "acc": acc,
                "f1": (0, 1),
                "perplexity": -2.0,
            }
            for acc in (1, 0, 0, True)
        ]
        + [{"filter": "strict", "metrics": ["acc"], "acc": 1.0}]
    }
    numbers = {"mine/acc": 0.5, "mine/f1": 0.4, "mine/perplexity": 7.4, "mine/acc,strict": 1.0}
    assert by_document(samples, numbers) == {
        "mine/acc": [1.0, 0.0, 0.0, 1.0],
        "mine/acc,strict": [1.0],
    }
    assert by_document(samples, {}) == {}


WRITTEN = [("The Eiffel tower!", 1.0), ("a tower", 2 * 1 * 0.5 / 1.5), ("in Paris", 0.0), ("", 0.0)]


def written(right: Any, doc_to_choice: list[str] | None = None) -> Any:
    """Return a task for which a model generates answers.

    right: one or more right answers, or their indices in `doc_to_choice`.
    """
    return SimpleNamespace(
        OUTPUT_TYPE="generate_until",
        config=SimpleNamespace(doc_to_choice=doc_to_choice, process_results=None, filter_list=None),
        doc_to_target=lambda doc: right,
        doc_to_choice=lambda doc: doc_to_choice,
    )


def answered(*texts: str) -> list[dict[str, Any]]:
    return [
        {"doc": {}, "filter": name, "filtered_resps": [text], "metrics": ["exact_match"]}
        for name in ("first", "second")
        for text in texts
    ]


@pytest.mark.parametrize("right", ["eiffel tower", ["Rome", "Eiffel  Tower"], 1, [1]])
def test_f1_of_written_answers_against_the_best_of_the_right_ones(right: Any) -> None:
    """F1 ignores case, punctuation and articles.

    If there are several right answers, F1 is computed with the right answer that is most similar to
    the model's answer. Some tasks of lm-eval give the index of the right answer instead of its
    text.
    """
    answers = written(right, ["Rome", "Eiffel tower"] if right in (1, [1]) else None)
    log = answered(*(text for text, _ in WRITTEN))
    found = f1("mine", answers, log)
    assert found.documents == {"mine/f1": pytest.approx([value for _, value in WRITTEN])}
    assert found.better == {"mine/f1": "higher"}
    log[0]["metrics"] = ["f1"]
    assert not f1("mine", answers, log).numbers and not f1("mine", task(0), log).numbers


def test_a_right_number_without_choices_is_the_answer_itself() -> None:
    assert f1("mine", written(12), answered("12", "1")).documents == {"mine/f1": [1.0, 0.0]}


def test_no_f1_where_a_task_judges_answers_in_its_own_way() -> None:
    own = written("0")
    picked = written("so 9 - 9 is 0 #### 0")
    own.config.process_results = print
    picked.config.filter_list = [
        {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "#### ([0-9]+)"}]}
    ]
    for task in (own, picked):
        assert not f1("mine", task, answered("0")).numbers


@pytest.mark.parametrize(
    ("right", "answer", "expected"),
    [
        ("-5", "5", 0.0),
        ("-5", "(-5).", 1.0),
        ("3.5", "35", 0.0),
        ("3.5 kg", "3.5kg.", 0.0),
        ("1,000", "1000.", 1.0),
        ("1914-18", "191418", 1.0),
        ("U.S.", "us", 1.0),
        ("well-known", "wellknown", 1.0),
        ("A", " a ", 1.0),
        ("A", "B", 0.0),
        ("The", "a", 0.0),
        ("A", "", 0.0),
        ("+", "+", 1.0),
        ("vitamin A", "A", 0.0),
        ("vitamin A", "vitamin", 1.0),
    ],
)
def test_f1_of_numbers_and_of_answers_without_words(
    right: str, answer: str, expected: float
) -> None:
    assert f1("mine", written(right), answered(answer)).documents == {"mine/f1": [expected]}
