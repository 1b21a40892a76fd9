"""Standard errors of means over documents, and of the difference between two models on the same documents."""

import math
from collections.abc import Sequence

import numpy

from flap.evaluation.base import Documents, Measurement, Numbers


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean, s / √n, where s is the sample's standard deviation (n - 1).

    The values must be independent. NaN if there is only one, or one is not finite.
    """
    if len(values) < 2 or not numpy.isfinite(values).all():
        return math.nan
    return float(numpy.std(values, ddof=1)) / math.sqrt(len(values))


def averaged(name: str, values: Sequence[float]) -> Measurement:
    """Return the mean of the values of documents as a number, with its standard error where there is one."""
    error = standard_error(values)
    errors = {} if math.isnan(error) else {f"{name}_stderr": error}
    return Measurement({name: float(numpy.mean(values)), **errors}, {name: list(values)})


def paired_errors(dense: Documents, pruned: Documents) -> Numbers:
    """Return the standard error of pruned - dense, for each number that both models have by document.

    Both have seen the same documents, so it is that of the mean of the documents' differences. How hard a document is
    cancels: the error comes from the documents on which the models differ.
    """
    pairs = {name: (dense[name], pruned[name]) for name in pruned if len(dense.get(name, [])) == len(pruned[name])}
    errors = {name: standard_error([b - a for a, b in zip(*pair, strict=True)]) for name, pair in pairs.items()}
    return {name: error for name, error in errors.items() if not math.isnan(error)}
