"""Standard errors of means over documents, and of differences between two models.

A difference is computed from values of both models for the same documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy

from flap.evaluation.base import Better, Measurement

SIGNIFICANCE = 0.05
K = TypeVar("K")


@numpy.errstate(over="ignore", invalid="ignore")  # an overflow gives inf or nan without a warning
def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean, s / √n.

    s: the standard deviation of the sample, with divisor n - 1. n: the number of values.

    The values must be independent. The standard error is NaN if there are fewer than two values, or
    if a value is not finite. It is infinite if the square of a value overflows.
    """
    if len(values) < 2 or not numpy.isfinite(values).all():
        return math.nan
    return float(numpy.std(values, ddof=1)) / math.sqrt(len(values))


def averaged(name: str, values: Sequence[float], better: Better) -> Measurement:
    """Return the mean of the documents' values, and its standard error if this error is finite."""
    numbers = {name: float(numpy.mean(values))}
    error = standard_error(values)
    if math.isfinite(error):
        numbers[f"{name}_stderr"] = error
    return Measurement(numbers, {name: list(values)}, {name: better})


@dataclass(frozen=True)
class Difference:
    """The difference after - before of a number, for two models on the same documents."""

    mean: float  # the mean of after - before over documents
    error: float  # the standard error of the mean
    # the probability of a difference at least this large if the models are equally good
    p_value: float
    freedom: float  # the degrees of freedom of the standard error

    @property
    def clear(self) -> bool:
        """Whether the difference is significant: p < 0.05."""
        return self.p_value < SIGNIFICANCE


def paired(
    before: Mapping[K, Sequence[float]], after: Mapping[K, Sequence[float]]
) -> dict[K, Difference]:
    """Return the difference after - before of each number, paired by document.

    before, after: for each number, the values of one model for all documents.

    A number is left out if one model has more values of this number than the other model, or if the
    standard error of the difference is not finite.

    Both models were measured on the same documents, so there is one difference for each document,
    and the standard error is computed from these differences. Therefore this error does not depend
    on how hard the documents are, but only on how differently the two models answer.
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
    """Return the differences, and add the differences of averages.

    averages: for each average, the names of the averaged numbers. These numbers were measured on
    different documents, so the squares of their standard errors add up.
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

    The null hypothesis: each document whose answer changed was as likely to become right as to
    become wrong.

    Source: McNemar, Psychometrika 12 (1947).
    """
    # imported inside functions, because importing scipy takes half a second
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
    """Compute the difference of an average over tasks from the differences of its parts.

    The degrees of freedom are computed by the formula of Welch and Satterthwaite (1947).
    """
    total = sum(part.error**2 for part in parts)
    mean = sum(part.mean for part in parts) / len(parts)
    error = math.sqrt(total) / len(parts)
    freedom = total**2 / sum(part.error**4 / part.freedom for part in parts) if total else math.inf
    return Difference(mean, error, _t_test(mean, error, freedom), freedom)
