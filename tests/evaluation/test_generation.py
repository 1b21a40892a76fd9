"""Answers that models write: what is counted right, errors, averages, and tasks without answers."""

from copy import deepcopy

import pytest
from transformers import PreTrainedTokenizerFast

from flap.evaluation.base import TEMPLATED
from flap.evaluation.generation import Generation
from flap.evaluation.zero_shot import ZeroShot
from flap.models import Resident
from flap.results.notices import notices
from flap.results.report import Report
from tests.cases import tiny_model

TASKS = ["sciq_answers", "basic_arithmetic"]
EXACT = ("sciq_answers/exact_match", "basic_arithmetic/exact_match")
OPTIONS = {"limit": 2, "num_fewshot": 0, "source": "packaged"}


@pytest.mark.long
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


@pytest.mark.parametrize(
    ("evaluation", "lacks"),
    [
        (Generation(["sciq_answers"], **OPTIONS), {"eos_token": None, "bos_token": "w0"}),
        (ZeroShot(["copa"], source="packaged"), {"eos_token": None, "bos_token": None}),
    ],
)
def test_a_tokenizer_without_the_tokens_that_tasks_take_is_one_line(
    evaluation: ZeroShot, lacks: dict[str, str | None], tokenizer: PreTrainedTokenizerFast
) -> None:
    other = deepcopy(tokenizer)
    for name, token in lacks.items():
        setattr(other, name, token)
    with pytest.raises(ValueError, match=rf"^{evaluation.section}.tasks=.*: expected .* a tokenizer with .*EOS"):
        evaluation.prepare(other, 128)


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


def test_the_report_says_which_tasks_were_asked_through_the_template() -> None:
    origins = {"model": "hub", "copa": "packaged", "sciq": f"packaged{TEMPLATED}", "rte": f"hub{TEMPLATED}"}
    assert "Asked through the tokenizer's chat template: sciq, rte." in notices(Report({}, sources=origins))
    assert not any("template" in text for text in notices(Report({}, sources={"copa": "packaged"})))
