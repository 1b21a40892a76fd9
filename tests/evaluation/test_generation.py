"""Answers that models write: what is counted right, errors, averages, and tasks without answers."""

import pytest
from transformers import PreTrainedTokenizerFast

from flap.evaluation.generation import Generation
from flap.models import Resident
from flap.results.notices import notices
from flap.results.report import Report
from tests.cases import tiny_model

TASKS = ["sciq_answers", "basic_arithmetic"]
EXACT = ("sciq_answers/exact_match", "basic_arithmetic/exact_match")
OPTIONS = {"limit": 2, "num_fewshot": 0, "source": "packaged"}


def test_numbers_have_documents_and_averages(tokenizer: PreTrainedTokenizerFast) -> None:
    evaluation = Generation(TASKS, **OPTIONS)
    names = {*EXACT, "sciq_answers/f1", "basic_arithmetic/f1"}
    measured = [task.run(Resident(tiny_model("llama-gqa"))) for task in evaluation.prepare(tokenizer, 128)]
    found = measured[0] | measured[1]
    assert set(found.documents) == names == set(found.better)
    assert all(len(values) == 2 for values in found.documents.values())
    averages = {"generation/exact_match": list(EXACT), "generation/f1": ["sciq_answers/f1", "basic_arithmetic/f1"]}
    assert evaluation.averages(found.numbers) == averages
    assert evaluation.averages({"sciq_answers/f1": 0.5}) == {}


def test_a_task_without_answers_to_write_is_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        ValueError, match=r"^eval\.generation\.tasks=copa: has no answers to write, but multiple_choice"
    ):
        Generation(["copa"], **OPTIONS).prepare(tokenizer, 128)


@pytest.mark.parametrize(("dense", "silent"), [(0.0, True), (0.02, True), (0.3, False)])
def test_a_task_that_the_dense_model_cannot_answer_tells_nothing(dense: float, silent: bool) -> None:
    report = Report({})
    average = "generation/exact_match"
    report.averages = {average: list(EXACT)}
    known = {EXACT[0]: dense, f"{EXACT[0]}_stderr": dense and 0.02, f"{EXACT[1]},strict-match": 0.0, EXACT[1]: 0.5}
    report.evaluation["dense"] = known | {average: 0.0}
    told = ["The dense model answers nothing of sciq_answers, which tells nothing at this size."]
    assert [text for text in notices(report) if "answers nothing" in text] == (told if silent else [])


def test_a_draft_promises_what_its_tokens_and_its_cost_give() -> None:
    """Half the size: two drafts a step give 1.75 tokens in the time of 2; at 0.25 of the time, measured, of 1.5."""
    report = Report({"eval": {"divergence": {"drafts": 2}}})
    report.parameters = {"total_before": 200, "total_after": 100}
    numbers = {"boolq-passages/acceptance@128": 0.5, "boolq-passages/tokens_per_step@128": 1.75}
    report.evaluation["pruned"] = numbers
    assert "boolq-passages, 2 tokens a step, it promises 1.75 tokens a step and 0.88 times" in notices(report)[-1]
    report.evaluation["pruned"] = {**numbers, "efficiency/decode_tokens_per_second_ratio": 4.0}
    assert "1.17 times the speed, at 0.25 of the dense cost (decoding)" in notices(report)[-1]
