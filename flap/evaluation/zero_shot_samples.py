"""What zero-shot tasks say of single documents: the values that their numbers are means of, and margins."""

import math
from collections import defaultdict
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy

from flap.evaluation.base import Documents, Measurement
from flap.evaluation.errors import averaged
from flap.evaluation.harness import Samples, flat_name


def by_document(samples: Samples, numbers: Mapping[str, float]) -> Documents:
    """Return the values of documents, in order, for the numbers that are their means; of accuracies they are 0 or 1."""
    values: dict[str, list[Any]] = defaultdict(list)
    for task, entries in samples.items():
        for entry in entries:
            for name in entry["metrics"]:
                values[f"{task}/{flat_name(name, entry['filter'])}"].append(entry[name])
    return {name: [float(value) for value in found] for name, found in values.items() if _is_mean(found, numbers, name)}


def _is_mean(values: list[Any], numbers: Mapping[str, float], name: str) -> bool:
    """Return whether a number is the mean of these values; lm-eval aggregates some in another way, or not at all."""
    if name not in numbers or not all(isinstance(value, Real) for value in values):
        return False
    return math.isclose(float(numpy.mean(values)), numbers[name], rel_tol=1e-9, abs_tol=1e-12)


def margin(name: str, task: Any, entries: list[dict[str, Any]], normalised: bool) -> Measurement:
    """Return the mean margin of a multiple-choice task with its standard error, in nats; higher is better.

    The margin of a document is the log-likelihood of the right choice less the largest of the other choices. It is
    above 0 where the answer counts as right, and moves with the model where the answer does not change. normalised:
    log-likelihoods are divided by the number of characters of the choice, as for acc_norm; then nats a character.

    Nothing is returned for a task that has another way to choose, or a document without a right or a wrong choice.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or callable(task.config.process_results) or not entries:
        return Measurement()
    margins = [_margin(task, entry, normalised) for entry in entries if entry["filter"] == entries[0]["filter"]]
    return averaged(f"{name}/margin", margins, "higher") if all(map(math.isfinite, margins)) else Measurement()


def _margin(task: Any, entry: dict[str, Any], normalised: bool) -> float:
    """Return the margin of a document; not finite without a right or a wrong choice."""
    choices = task.doc_to_choice(entry["doc"])
    answers = entry["filtered_resps"][: len(choices)]  # further ones are of choices without a question
    scores = [answer[0] / (len(choice) if normalised else 1) for answer, choice in zip(answers, choices, strict=True)]
    right = _right(task, entry["doc"], choices)
    return max((s for i, s in enumerate(scores) if i in right), default=-math.inf) - max(
        (s for i, s in enumerate(scores) if i not in right), default=-math.inf
    )


def _right(task: Any, document: Any, choices: list[str]) -> set[int]:
    """Return the indices of the right choices, which lm-eval reads as indices or as texts."""
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    golds = gold if isinstance(gold, list) else [gold]
    return {choices.index(one) if one in choices else one for one in golds}
