"""Standard errors of means and of paired differences, by hand."""

import math

import pytest
from scipy.stats import t

from flap.evaluation.errors import averaged, paired, standard_error, with_averages

RIGHT = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_of_a_mean() -> None:
    assert standard_error([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    found = averaged("a/margin", [1.0, 2.0, 6.0], "higher")
    assert found.numbers == {"a/margin": 3.0, "a/margin_stderr": standard_error([1.0, 2.0, 6.0])}
    assert (found.documents, found.better) == (
        {"a/margin": [1.0, 2.0, 6.0]},
        {"a/margin": "higher"},
    )


@pytest.mark.parametrize("values", [[2.0], [2.0, math.inf], [2.0, math.nan], [2.0, 1e250]])
def test_without_an_error(values: list[float]) -> None:
    assert averaged("a/margin", values, "higher").numbers.keys() == {"a/margin"}


def test_only_documents_that_changed_count() -> None:
    changed = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]  # two are lost and one is won: -1/8
    variance = (3 - 8 * (1 / 8) ** 2) / 7
    [same] = paired({"a": RIGHT}, {"a": RIGHT}).values()
    [found] = paired({"a": RIGHT}, {"a": changed}).values()
    assert (same.mean, same.error, same.p_value, same.clear) == (0, 0, 1, False)
    assert (found.mean, found.error) == (
        pytest.approx(-1 / 8),
        pytest.approx(math.sqrt(variance / 8)),
    )
    assert found.error < math.hypot(standard_error(RIGHT), standard_error(changed))


@pytest.mark.parametrize(
    ("lost", "won", "p_value"), [(2, 1, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (9, 1, 22 / 1024)]
)
def test_answers_have_mcnemars_exact_test(lost: int, won: int, p_value: float) -> None:
    """Of n answers that changed, at least so many one way: twice the binomial tail, by hand."""
    one = [1.0] * lost + [0.0] * won + [1.0] * 9
    other = [0.0] * lost + [1.0] * won + [1.0] * 9
    [found] = paired({"a": one}, {"a": other}).values()
    assert found.p_value == pytest.approx(p_value)
    assert found.clear == (p_value < 0.05)


def test_other_values_have_the_t_test() -> None:
    """t = 2 / 1 with two degrees of freedom: p = 1 - t / √(2 + t²)."""
    changes = [2 - math.sqrt(3), 2.0, 2 + math.sqrt(3)]
    [found] = paired(
        {"a": [0.5, 7.0, 9.0]}, {"a": [0.5 + changes[0], 9.0, 9 + changes[2]]}
    ).values()
    assert (found.mean, found.error) == (pytest.approx(2), pytest.approx(1))
    assert found.p_value == pytest.approx(1 - 2 / math.sqrt(6))
    [same] = paired({"a": [0.5, 7.0]}, {"a": [1.5, 8.0]}).values()
    assert (same.error, same.p_value) == (0, 0)


def test_an_average_has_the_errors_of_its_parts() -> None:
    one, other = (
        {"a": [1.0, 3.0], "b": [0.5, 0.5]},
        {"a": [3.0, 9.0], "b": [3.5, 9.5]},
    )  # 4 ± 2 and 6 ± 3
    found = with_averages(paired(one, other), {"mean": ["a", "b"], "more": ["a", "b", "c"]})
    assert found.keys() == {"a", "b", "mean"}
    assert (found["mean"].mean, found["mean"].error) == (
        pytest.approx(5),
        pytest.approx(math.sqrt(13) / 2),
    )
    assert found["mean"].p_value == pytest.approx(
        2 * t.sf(10 / math.sqrt(13), 13**2 / (2**4 + 3**4))
    )


def test_numbers_that_are_not_paired_have_none() -> None:
    dense = {name: [1.0, 2.0] for name in ("a", "infinite", "huge", "dense alone")} | {
        "longer": [1.0, 2.0, 3.0]
    }
    pruned = {
        "a": [1.0, 3.0],
        "longer": [1.0, 2.0],
        "infinite": [1.0, math.inf],
        "huge": [1.0, 1e250],
    }
    pruned["pruned alone"] = [1.0, 2.0]
    assert {name: found.error for name, found in paired(dense, pruned).items()} == {"a": 0.5}
