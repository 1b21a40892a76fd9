"""What runs have kept of single documents, so that two runs on the same documents can be compared."""

from collections.abc import Mapping
from pathlib import Path

from flap.evaluation.errors import Difference, averaged_differences, paired_differences
from flap.evaluation.results import RESULTS, Results
from flap.storage import digest

Kept = dict[tuple[str, str], list[float]]  # values of documents, by the number's name and the digest of the documents


def kept_documents(folder: Path, numbers: Mapping[str, float | None]) -> Kept:
    """Return the documents' values that a run has kept for these numbers of its pruned model; empty without any."""
    return {
        (name, digest([key["task"], key["data"]])): values
        for key, measured in Results(folder / RESULTS).stored().values()
        if {"plan", "data"} <= key.keys()  # the dense model's have no plan
        for name, values in measured.documents.items()
        if name in numbers and measured.numbers.get(name) == numbers[name]  # others are of an earlier start
    }


def differences(one: Kept, other: Kept, averages: Mapping[str, list[str]]) -> dict[str, Difference]:
    """Return the difference other - one of each number that both runs have on the same documents.

    averages: over tasks, each with the names of the numbers that it is the mean of.
    """
    paired = {name: found for (name, _), found in paired_differences(one, other).items()}
    return paired | averaged_differences(averages, paired)
