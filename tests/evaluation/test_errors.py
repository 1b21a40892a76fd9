"""Standard errors of means and of paired differences, by hand."""

import math

import pytest

from flap.evaluation.errors import averaged, paired_errors, standard_error

RIGHT = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_of_a_mean() -> None:
    assert standard_error([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    found = averaged("a/margin", [1.0, 2.0, 6.0])
    assert found.numbers == {"a/margin": 3.0, "a/margin_stderr": standard_error([1.0, 2.0, 6.0])}
    assert found.documents == {"a/margin": [1.0, 2.0, 6.0]}


@pytest.mark.parametrize("values", [[2.0], [2.0, math.inf], [2.0, math.nan]])
def test_without_an_error(values: list[float]) -> None:
    assert averaged("a/margin", values).numbers.keys() == {"a/margin"}


def test_only_documents_that_changed_count() -> None:
    changed = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]  # two are lost and one is won: -1/8
    variance = (3 - 8 * (1 / 8) ** 2) / 7
    same, [error] = paired_errors({"a": RIGHT}, {"a": RIGHT}), paired_errors({"a": RIGHT}, {"a": changed}).values()
    assert same == {"a": 0.0}
    assert error == pytest.approx(math.sqrt(variance / 8))
    assert error < math.hypot(standard_error(RIGHT), standard_error(changed))


def test_numbers_that_are_not_paired_have_none() -> None:
    dense = {"a": [1.0, 2.0], "longer": [1.0, 2.0, 3.0], "infinite": [1.0, 2.0], "dense alone": [1.0, 2.0]}
    pruned = {"a": [1.0, 3.0], "longer": [1.0, 2.0], "infinite": [1.0, math.inf], "pruned alone": [1.0, 2.0]}
    assert paired_errors(dense, pruned) == {"a": 0.5}
