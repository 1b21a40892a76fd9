"""A run returns the results that the option `objective` names, for sweepers that optimise them."""

import pytest

from flap.config import objectives
from flap.results import Report
from flap.results.objective import objective_of

NUMBERS = {"sciq_answers/exact_match": 0.4, "sciq_answers/f1": 0.5}
REPORT = Report(
    {},
    evaluation={"dense": {"sciq_answers/f1": 0.7}, "pruned": NUMBERS},
    parameters={"total_before": 10, "total_after": 8},
)


def test_one_name_is_one_number_and_several_are_a_tuple() -> None:
    assert objective_of(REPORT, []) is None
    assert objective_of(REPORT, ["pruned/sciq_answers/exact_match"]) == 0.4
    names = ["dense/sciq_answers/f1", "parameters/total_after"]
    assert objective_of(REPORT, names) == (0.7, 8.0)


def test_an_unknown_number_is_refused_with_similar_ones() -> None:
    expected = (
        "objective=pruned/sciq_answer/f1: the run has no such number; .* pruned/sciq_answers/f1"
    )
    with pytest.raises(ValueError, match=expected):
        objective_of(REPORT, ["pruned/sciq_answer/f1"])


@pytest.mark.parametrize("wrong", ["f1", "sciq/f1", 3, [["pruned/f1"]], ["pruned/f1", "x"]])
def test_a_name_without_a_section_is_refused_before_the_run(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"^objective=.*: expected names that begin with one of"):
        objectives(wrong)
