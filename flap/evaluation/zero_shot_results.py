"""Convert lm-eval's results into measurements, and compute margins and F1.

A filter of lm-eval is a rule that extracts the final answer from the model's output. A task may
have several filters.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy

from flap.evaluation.base import Better, Documents, Measurement, Numbers
from flap.evaluation.errors import averaged

# An entry of lm-eval's log, for one document and one filter.
Entry = dict[str, Any]
Samples = Mapping[str, list[Entry]]  # lm-eval's log entries for each task


def flat_numbers(results: Mapping[str, Mapping[str, Any]]) -> Numbers:
    """Return lm-eval's results as one dict from the names of numbers to their values.

    {"piqa": {"acc,none": 0.8}} becomes {"piqa/acc": 0.8}.

    The name of a number contains the name of the filter, unless the name of the filter is "none".
    The name of a standard error ends with "_stderr". Values that are not finite numbers are left
    out, for example the alias of a task, or "N/A", which stands for a standard error that cannot be
    estimated.
    """
    numbers = Numbers()
    for task, of_task in results.items():
        for key, value in of_task.items():
            measure, comma, filter_name = key.partition(",")
            if comma and isinstance(value, Real) and math.isfinite(value):
                name = _flat_name(task, measure, filter_name)
                numbers[name] = float(value)
    return numbers


def _flat_name(task: str, measure: str, filter_name: str) -> str:
    """Return the name of a number from the names of its task, measure and filter in lm-eval.

    ("gsm8k", "acc_stderr", "strict") becomes "gsm8k/acc,strict_stderr".
    """
    suffix = "" if filter_name == "none" else f",{filter_name}"
    if measure.endswith("_stderr"):
        measure = measure.removesuffix("_stderr")
        suffix += "_stderr"
    return f"{task}/{measure}{suffix}"


def directions(
    numbers: Numbers, higher_is_better: Mapping[str, Mapping[str, bool | None]]
) -> dict[str, Better]:
    """Return, for each number, whether higher or lower values are better.

    Numbers are left out if lm-eval does not say which values are better.

    higher_is_better: for the measures of each task or group, whether lm-eval says that higher
        values are better, as in {"piqa": {"acc": True}}.
    """
    better: dict[str, Better] = {}
    for name in numbers:
        task, _, measure = name.rpartition("/")
        measure, _, _ = measure.partition(",")
        higher = higher_is_better.get(task, {}).get(measure)
        # `higher` is None for a group if higher values are better only in some of the group's tasks
        if higher is not None and not name.endswith("_stderr"):
            better[name] = "higher" if higher else "lower"
    return better


def by_document(samples: Samples, numbers: Mapping[str, float]) -> Documents:
    """Return, for each number that is a mean over documents, its value on each document.

    For an accuracy, the value on a document is 0 or 1.
    """
    values: dict[str, list[Any]] = defaultdict(list)
    for task, entries in samples.items():
        for entry in entries:
            for metric in entry["metrics"]:
                name = _flat_name(task, metric, entry["filter"])
                values[name].append(entry[metric])

    documents = Documents()
    for name, of_documents in values.items():
        if name not in numbers:
            continue
        if not all(isinstance(value, Real) for value in of_documents):
            continue
        # leave out a number that is not the mean of its values on the documents
        mean = float(numpy.mean(of_documents))
        if math.isclose(mean, numbers[name], rel_tol=1e-9, abs_tol=1e-12):
            documents[name] = [float(value) for value in of_documents]
    return documents


def margin(name: str, task: Any, entries: list[Entry], normalised: bool) -> Measurement:
    """Return the mean margin of a multiple-choice task, with the standard error of the mean.

    The margin of a document is the log-likelihood of the right choice minus the highest
    log-likelihood of a wrong choice, in nats; higher is better. The margin is above 0 if the model
    prefers the right choice. Even if the model prefers the same choice before and after pruning,
    so that the accuracy stays the same, the margin shows how the log-likelihoods have changed.

    normalised: whether each log-likelihood is divided by the number of characters of its choice, as
        for acc_norm. The margin is then in nats per character.

    The returned measurement is empty if the task is not a multiple-choice task, if the task has a
    scoring function of its own, or if a document has no right choice or no wrong choice.
    """
    other_way = task.OUTPUT_TYPE != "multiple_choice" or callable(task.config.process_results)
    if other_way or not entries:
        return Measurement()
    margins = []
    for entry in _of_first_filter(entries):
        margins.append(_margin(task, entry, normalised))
    if not all(map(math.isfinite, margins)):
        return Measurement()
    return averaged(f"{name}/margin", margins, "higher")


def _of_first_filter(entries: list[Entry]) -> list[Entry]:
    """Return the log entries of the task's first filter: one entry for each document."""
    first_filter = entries[0]["filter"]
    return [entry for entry in entries if entry["filter"] == first_filter]


def _margin(task: Any, entry: Entry, normalised: bool) -> float:
    """Return the margin of a document.

    The margin is infinite or NaN if the document has no right choice or no wrong choice.
    """
    document = entry["doc"]
    choices = task.doc_to_choice(document)
    right = _right_choices(task, document, choices)
    best_right = -math.inf
    best_wrong = -math.inf
    # after the answers to the question, lm-eval may append the log-likelihoods of the choices
    # without the question; zip leaves these out
    answers = zip(choices, entry["filtered_resps"], strict=False)
    for number, (choice, answer) in enumerate(answers):
        characters = len(choice) if normalised else 1
        nats = answer[0] / characters
        if number in right:
            best_right = max(best_right, nats)
        else:
            best_wrong = max(best_wrong, nats)
    return best_right - best_wrong


def _right_choices(task: Any, document: Any, choices: list[str]) -> list[Any]:
    """Return the indices of the right choices of a document.

    lm-eval's tasks give right choices as indices or as texts.
    """
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    numbers = []
    for right in _listed(gold):
        numbers.append(choices.index(right) if right in choices else right)
    return numbers


def _listed(gold: Any) -> list[Any]:
    return gold if isinstance(gold, list) else [gold]


def f1(name: str, task: Any, entries: list[Entry]) -> Measurement:
    """Return the mean F1 of the answers that a model has written, with the mean's standard error.

    The F1 of an answer is the harmonic mean of the precision and the recall of its words, compared
    with the words of the right answer. If there are several right answers, the F1 is the highest of
    the scores with these answers. The F1 is between 0 and 1; higher is better. Case, punctuation
    and articles are ignored.

    Source: SQuAD, Rajpurkar et al., EMNLP 2016, arXiv 1606.05250, section 6.1. The evaluation
    script of SQuAD differs from this function in five ways:

    - it deletes all ASCII punctuation, so that -5 equals 5 and 3.5 equals 35; here, numbers keep
      their sign and decimal point;
    - it keeps all other punctuation, such as curly quotes, dashes and currency signs; here, this
      punctuation is removed;
    - it treats an answer that has no words except articles, such as "A" or "The", as empty, so that
      all such answers are equal; here, their texts are compared;
    - in version 1.1, the F1 of two answers without words is 0; here, it is 1 if their texts are
      equal;
    - it returns per cent; here, the best value is 1.

    The returned measurement is empty if the model writes no answers in the task, if the task has a
    scoring function of its own, or if lm-eval already computes an F1. It is also empty if the task
    extracts a part of the model's answer with a regular expression, as gsm8k does, because the
    right answers of the task may be longer than this part.
    """
    other_way = task.OUTPUT_TYPE != "generate_until" or callable(task.config.process_results)
    picks_a_part = "regex" in str(task.config.filter_list)
    if other_way or picks_a_part or not entries:
        return Measurement()
    if "f1" in entries[0]["metrics"]:
        return Measurement()

    values = []
    for entry in _of_first_filter(entries):
        answer = str(entry["filtered_resps"][0])
        right = _references(task, entry["doc"])
        values.append(max(_overlap(answer, reference) for reference in right))
    return averaged(f"{name}/f1", values, "higher")


def _references(task: Any, document: Any) -> list[str]:
    """Return the right answers to a document.

    lm-eval's tasks give right answers as texts, numbers, or indices of choices.
    """
    choices = []
    if task.config.doc_to_choice is not None:
        choices = task.doc_to_choice(document)
    references = []
    for right in _listed(task.doc_to_target(document)):
        if choices and isinstance(right, int):
            right = choices[right]
        references.append(str(right))
    return references


def _overlap(answer: str, reference: str) -> float:
    """Return the F1 between the words of an answer and the words of a right answer.

    If one of the texts has no words except articles, such as "A", return 1 if the texts are equal,
    else 0. In this case, the script of SQuAD 2 (Rajpurkar et al., ACL 2018, arXiv 1806.03822)
    compares the lists of their words instead: it returns 1 if both lists are empty, else 0.
    """
    words = Counter(_words(answer))
    expected = Counter(_words(reference))
    if not words or not expected:
        return float(answer.strip().lower() == reference.strip().lower())
    common = words & expected
    return 2 * common.total() / (words.total() + expected.total())


def _words(text: str) -> list[str]:
    """Split a text into words, without punctuation and articles.

    Numbers keep their sign and their decimal point.
    """
    words = re.sub(r"_|(?!(?<!\w)-\d|(?<=\d)\.\d)[^\w\s]", "", text.lower()).split()
    return [word for word in words if word not in ("a", "an", "the")]
