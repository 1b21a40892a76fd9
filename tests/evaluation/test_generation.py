"""eval=generation scores answers that the model generates, and refuses tokenizers without EOS.

The tests also check the averages over tasks, and the report's notes on tasks that the dense model
cannot answer and on tasks that use the chat template.
"""

from copy import deepcopy

import pytest
from transformers import PreTrainedTokenizerFast

from flap.evaluation.base import TEMPLATED
from flap.evaluation.generation import Generation
from flap.evaluation.zero_shot import ZeroShot
from flap.results.notices import notices
from flap.results.report import Report

TASKS = ["sciq_answers", "basic_arithmetic"]
EXACT = ("sciq_answers/exact_match", "basic_arithmetic/exact_match")
OPTIONS = {"limit": 2, "num_fewshot": 0, "source": "packaged"}


@pytest.mark.long
def test_an_average_is_of_all_tasks() -> None:
    names = {
        f"generation/{one}": [f"{task}/{one}" for task in TASKS] for one in ("exact_match", "f1")
    }
    measured = {name: 0.5 for of_tasks in names.values() for name in of_tasks}
    assert Generation(TASKS).averages(measured) == names
    assert Generation(TASKS).averages({"sciq_answers/f1": 0.5}) == {}


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
    with pytest.raises(
        ValueError, match=rf"^{evaluation.section}.tasks=.*: expected .* a tokenizer with .*EOS"
    ):
        evaluation.prepare(other, 128)


@pytest.mark.parametrize(("dense", "silent"), [(0.0, True), (0.02, True), (0.3, False)])
def test_a_task_that_the_dense_model_cannot_answer_tells_nothing(
    dense: float, silent: bool
) -> None:
    report = Report({})
    average = "generation/exact_match"
    report.averages = {average: list(EXACT)}
    known = {
        EXACT[0]: dense,
        f"{EXACT[0]}_stderr": dense and 0.02,
        f"{EXACT[1]},strict-match": 0.0,
        EXACT[1]: 0.5,
    }
    report.evaluation["dense"] = known | {average: 0.0}
    told = [
        "The dense model answers nothing of sciq_answers, so these tasks say nothing about "
        "pruning it."
    ]
    assert [text for text in notices(report) if "answers nothing" in text] == (
        told if silent else []
    )


def test_the_report_says_which_tasks_were_asked_through_the_template() -> None:
    origins = {
        "model": "hub",
        "copa": "packaged",
        "sciq": f"packaged{TEMPLATED}",
        "rte": f"hub{TEMPLATED}",
    }
    assert "Asked through the tokenizer's chat template: sciq, rte." in notices(
        Report({}, sources=origins)
    )
    assert not any("template" in text for text in notices(Report({}, sources={"copa": "packaged"})))
