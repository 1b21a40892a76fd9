"""Standard errors and p-values agree with values that are computed by hand."""

import math

import pytest
from scipy.stats import t

from flap.evaluation.errors import Difference, averaged, paired, standard_error, with_averages

RIGHT = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def difference(dense: list[float], pruned: list[float]) -> Difference:
    """Return the paired difference between the dense and the pruned model.

    dense, pruned: the results of the model for the same documents.
    """
    return paired({"a": dense}, {"a": pruned})["a"]


def test_of_a_mean() -> None:
    values = [1.0, 2.0, 6.0]
    variance = (4 + 1 + 9) / 2
    error = standard_error(values)
    assert error == pytest.approx(math.sqrt(variance / 3))

    measurement = averaged("a/margin", values, "higher")
    assert measurement.numbers == {"a/margin": 3.0, "a/margin_stderr": error}
    assert measurement.documents == {"a/margin": values}
    assert measurement.better == {"a/margin": "higher"}


@pytest.mark.parametrize("values", [[2.0], [2.0, math.inf], [2.0, math.nan], [2.0, 1e250]])
def test_without_an_error(values: list[float]) -> None:
    measurement = averaged("a/margin", values, "higher")
    assert list(measurement.numbers) == ["a/margin"]


def test_the_same_answers_do_not_differ() -> None:
    same = difference(RIGHT, RIGHT)
    assert same.mean == 0
    assert same.error == 0
    assert same.p_value == 1
    assert not same.clear


def test_only_documents_that_changed_count() -> None:
    """Pairing the results by document makes the standard error of a difference smaller.

    Of eight answers, pruning makes two right answers wrong, and one wrong answer right.
    """
    changed = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    found = difference(RIGHT, changed)
    mean = -1 / 8
    variance = (3 - 8 * mean**2) / 7
    assert found.mean == pytest.approx(mean)
    assert found.error == pytest.approx(math.sqrt(variance / 8))

    unpaired = math.hypot(standard_error(RIGHT), standard_error(changed))
    assert found.error < unpaired


@pytest.mark.parametrize(
    ("lost", "won", "p_value"),
    [
        (2, 1, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (9, 1, 22 / 1024),
    ],
)
def test_answers_have_mcnemars_exact_test(lost: int, won: int, p_value: float) -> None:
    """The p-value is twice the probability that at most min(lost, won) changed answers are lost.

    Pruning makes `lost` right answers wrong, and `won` wrong answers right. By chance, each changed
    answer is lost or won with probability 1/2, so the number of lost answers is binomial.
    """
    kept = [1.0] * 9
    dense = [1.0] * lost + [0.0] * won + kept
    pruned = [0.0] * lost + [1.0] * won + kept
    found = difference(dense, pruned)
    assert found.p_value == pytest.approx(p_value)
    assert found.clear == (p_value < 0.05)


def test_other_values_have_the_t_test() -> None:
    """The differences have the mean 2 and the standard error 1, so t = 2.

    With two degrees of freedom, p = 1 - t / √(2 + t²).
    """
    root = math.sqrt(3)
    dense = [0.5, 7.0, 9.0]
    pruned = [0.5 + 2 - root, 7.0 + 2, 9.0 + 2 + root]
    found = difference(dense, pruned)
    assert found.mean == pytest.approx(2)
    assert found.error == pytest.approx(1)
    assert found.p_value == pytest.approx(1 - 2 / math.sqrt(6))


def test_the_same_change_everywhere_has_no_error() -> None:
    found = difference([0.5, 7.0], [1.5, 8.0])
    assert found.error == 0
    assert found.p_value == 0


def test_an_average_has_the_errors_of_its_parts() -> None:
    """The average of 4 ± 2 and 6 ± 3 is 5, with the standard error √(2² + 3²) / 2."""
    dense = {"a": [1.0, 3.0], "b": [0.5, 0.5]}
    pruned = {"a": [3.0, 9.0], "b": [3.5, 9.5]}
    averages = {"mean": ["a", "b"], "more": ["a", "b", "c"]}
    found = with_averages(paired(dense, pruned), averages)
    assert found.keys() == {"a", "b", "mean"}

    root = math.sqrt(13)
    degrees_of_freedom = 13**2 / (2**4 + 3**4)
    mean = found["mean"]
    assert mean.mean == pytest.approx(5)
    assert mean.error == pytest.approx(root / 2)
    assert mean.p_value == pytest.approx(2 * t.sf(10 / root, degrees_of_freedom))


def test_numbers_that_are_not_paired_have_no_difference() -> None:
    dense = {
        "a": [1.0, 2.0],
        "longer": [1.0, 2.0, 3.0],
        "infinite": [1.0, 2.0],
        "huge": [1.0, 2.0],
        "dense alone": [1.0, 2.0],
    }
    pruned = {
        "a": [1.0, 3.0],
        "longer": [1.0, 2.0],
        "infinite": [1.0, math.inf],
        "huge": [1.0, 1e250],
        "pruned alone": [1.0, 2.0],
    }
    differences = paired(dense, pruned)
    assert list(differences) == ["a"]
    assert differences["a"].error == 0.5
