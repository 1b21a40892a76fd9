"""Standard errors of means over documents, and of the differences of means between two models.

In this module, an error is a standard error, never a wrong answer of a model. A document is, for
example, a question of a benchmark. A difference between two models is computed from the values of
both models for the same documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy

from flap.evaluation.base import Better, Measurement

SIGNIFICANCE = 0.05
K = TypeVar("K")


@numpy.errstate(over="ignore", invalid="ignore")  # do not warn if an overflow gives inf or nan
def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of the given values, s / √n.

    s: the standard deviation of the sample, with divisor n - 1. n: the number of values.

    The values must be independent of each other. The standard error is NaN if there are fewer than
    two values, or if a value is not finite. The standard error is infinite if the sum of the
    squared deviations from the mean overflows.
    """
    if len(values) < 2 or not numpy.isfinite(values).all():
        return math.nan
    return float(numpy.std(values, ddof=1)) / math.sqrt(len(values))


def averaged(name: str, values: Sequence[float], better: Better) -> Measurement:
    """Return a measurement of the mean of the values.

    The measurement also has the standard error of the mean, if this error is finite.

    name: the name of the mean. values: one value for each document or window.
    """
    numbers = {name: float(numpy.mean(values))}
    error = standard_error(values)
    if math.isfinite(error):
        numbers[f"{name}_stderr"] = error
    return Measurement(numbers, {name: list(values)}, {name: better})


@dataclass(frozen=True)
class Difference:
    """How much a mean over documents differs between two models, `before` and `after`."""

    mean: float  # the mean over documents of the value of `after` minus the value of `before`
    error: float  # the standard error of `mean`
    # the probability that the absolute difference would be at least this large if both models were
    # equally good
    p_value: float
    freedom: float  # the degrees of freedom of the standard error, for the t-test

    @property
    def clear(self) -> bool:
        """Whether the difference is statistically significant: p < 0.05."""
        return self.p_value < SIGNIFICANCE


def paired(
    before: Mapping[K, Sequence[float]], after: Mapping[K, Sequence[float]]
) -> dict[K, Difference]:
    """Return how much each number, such as an accuracy, differs between two models.

    before, after: for each number, its values on all documents, such as 0 or 1 for an accuracy.
        `before` has the values of the first model, and `after` those of the second model. The
        difference is `after` minus `before`.

    A number is left out if the two models do not have equally many values of this number, or if the
    standard error of the difference is not finite.

    Both models were measured on the same documents, so there is a difference for each document, and
    the standard error is computed from these differences. Therefore the standard error does not
    depend on how hard the documents are, but only on how differently the two models answer.
    """
    pairs = {}
    for key, values in after.items():
        if len(before.get(key, ())) == len(values):
            pair = _paired(before[key], values)
            if math.isfinite(pair.error):
                pairs[key] = pair
    return pairs


def with_averages(
    numbers: Mapping[str, Difference], averages: Mapping[str, Sequence[str]]
) -> dict[str, Difference]:
    """Return `numbers` with an additional entry for each average, such as the mean accuracy.

    The additional entry says how much the average differs between the two models.

    numbers: how much each number differs between two models.
    averages: a dict from the name of each average to the names of the averaged numbers. These
        numbers were measured on different documents, so the squares of their standard errors add
        up. An average is left out if one of these numbers is not in `numbers`.
    """
    found = dict(numbers)
    for name, parts in averages.items():
        if numbers.keys() >= {*parts}:
            found[name] = _averaged([numbers[part] for part in parts])
    return found


def _paired(before: Sequence[float], after: Sequence[float]) -> Difference:
    changes = [b - a for a, b in zip(before, after, strict=True)]
    mean = float(numpy.mean(changes))
    error = standard_error(changes)
    right_or_wrong = {*before, *after} <= {0.0, 1.0}
    freedom = len(changes) - 1
    p_value = _mcnemar(changes) if right_or_wrong else _t_test(mean, error, freedom)
    return Difference(mean, error, p_value, freedom)


def _mcnemar(changes: Sequence[float]) -> float:
    """Return the p-value of McNemar's exact test.

    The null hypothesis is that an answer which changed from the first to the second model was as
    likely to become right as to become wrong.

    changes: for each document, 1.0 if the answer became right, -1.0 if the answer became wrong, and
        0.0 if it did not change.

    Source: McNemar, Psychometrika 12 (1947).
    """
    # imported here, because importing scipy takes half a second
    from scipy.stats import binomtest

    won = changes.count(1.0)
    changed = won + changes.count(-1.0)
    return float(binomtest(won, changed).pvalue) if changed else 1.0


def _t_test(mean: float, error: float, freedom: float) -> float:
    from scipy.stats import t

    if mean == 0:
        return 1.0
    if error == 0:
        return 0.0
    return float(2 * t.sf(abs(mean) / error, freedom))


def _averaged(parts: Sequence[Difference]) -> Difference:
    """Compute the difference of an average from the differences of the averaged numbers.

    The degrees of freedom are computed by the formula of Welch and Satterthwaite (1947).
    """
    total = sum(part.error**2 for part in parts)
    mean = sum(part.mean for part in parts) / len(parts)
    error = math.sqrt(total) / len(parts)
    freedom = total**2 / sum(part.error**4 / part.freedom for part in parts) if total else math.inf
    return Difference(mean, error, _t_test(mean, error, freedom), freedom)
