"""Turns lm-eval's results into named numbers, values of documents, margins, and F1."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy

from flap.evaluation.base import Better, Documents, Measurement, Numbers
from flap.evaluation.errors import averaged

Entry = dict[str, Any]  # of lm-eval's log, for a document (and filter)
Samples = Mapping[str, list[Entry]]  # lm-eval's log, by task


def flat_numbers(results: Mapping[str, Mapping[str, Any]]) -> Numbers:
    """Return lm-eval's results as flat numbers.

    {"piqa": {"acc,none": 0.8, …}} becomes {"piqa/acc": 0.8}.

    A filter other than "none" stays in the name. A standard error has its number's name and
    "_stderr". Values that are not finite numbers are left out: names, aliases, and "N/A" for an
    error that cannot be estimated.
    """
    numbers = Numbers()
    for task, of_task in results.items():
        for key, value in of_task.items():
            if "," in key and isinstance(value, Real) and math.isfinite(value):
                numbers[_flat_name(task, *key.split(",", 1))] = float(value)
    return numbers


def _flat_name(task: str, measure: str, filter_name: str) -> str:
    """Return the name of a number.

    ("gsm8k", "acc_stderr", "strict") becomes "gsm8k/acc,strict_stderr".
    """
    suffix = "" if filter_name == "none" else f",{filter_name}"
    error = "_stderr" if measure.endswith("_stderr") else ""
    return f"{task}/{measure.removesuffix('_stderr')}{suffix}{error}"


def directions(
    numbers: Numbers, higher_is_better: Mapping[str, Mapping[str, bool | None]]
) -> dict[str, Better]:
    """Return which values of lm-eval's numbers are better, as its tasks and groups say.

    An example is {"piqa": {"acc": True}}.
    """
    better: dict[str, Better] = {}
    for name in numbers:
        task, _, measure = name.rpartition("/")
        higher = higher_is_better.get(task, {}).get(measure.partition(",")[0])
        # None: of a group whose tasks disagree
        if higher is not None and not name.endswith("_stderr"):
            better[name] = "higher" if higher else "lower"
    return better


def by_document(samples: Samples, numbers: Mapping[str, float]) -> Documents:
    """Return the values of documents, in order, for the numbers that are their means.

    The values of accuracies are 0 or 1.
    """
    values: dict[str, list[Any]] = defaultdict(list)
    for task, entries in samples.items():
        for entry in entries:
            for name in entry["metrics"]:
                values[_flat_name(task, name, entry["filter"])].append(entry[name])
    documents = Documents()
    for name, of_documents in values.items():
        if name in numbers and all(isinstance(value, Real) for value in of_documents):
            mean = float(numpy.mean(of_documents))  # lm-eval aggregates some numbers in another way
            if math.isclose(mean, numbers[name], rel_tol=1e-9, abs_tol=1e-12):
                documents[name] = [float(value) for value in of_documents]
    return documents


def margin(name: str, task: Any, entries: list[Entry], normalised: bool) -> Measurement:
    """Return the mean margin of a multiple-choice task with its standard error.

    It is in nats; higher is better.

    The margin of a document is the log-likelihood of the right choice less the largest of the other
    choices. It is above 0 where the answer counts as right, and moves with the model where the
    answer does not change. normalised: log-likelihoods are divided by the number of characters of
    the choice, as for acc_norm; then nats a character.

    Nothing is returned for a task that has another way to choose, or a document without a right or
    a wrong choice.
    """
    other_way = task.OUTPUT_TYPE != "multiple_choice" or callable(task.config.process_results)
    if other_way or not entries:
        return Measurement()
    margins = [_margin(task, entry, normalised) for entry in _of_first_filter(entries)]
    if not all(map(math.isfinite, margins)):
        return Measurement()
    return averaged(f"{name}/margin", margins, "higher")


def _of_first_filter(entries: list[Entry]) -> list[Entry]:
    """Return one entry for each document."""
    return [entry for entry in entries if entry["filter"] == entries[0]["filter"]]


def _margin(task: Any, entry: Entry, normalised: bool) -> float:
    """Return the margin of a document; not finite without a right or a wrong choice."""
    document = entry["doc"]
    choices = task.doc_to_choice(document)
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    # lm-eval reads the right choices as indices or as texts
    right = [choices.index(one) if one in choices else one for one in _listed(gold)]

    best = {True: -math.inf, False: -math.inf}  # of the right choices, and of the wrong ones
    # answers beyond the choices are of choices without a question
    answers = zip(choices, entry["filtered_resps"], strict=False)
    for number, (choice, answer) in enumerate(answers):
        characters = len(choice) if normalised else 1
        is_right = number in right
        best[is_right] = max(best[is_right], answer[0] / characters)
    return best[True] - best[False]


def _listed(gold: Any) -> list[Any]:
    return gold if isinstance(gold, list) else [gold]


def f1(name: str, task: Any, entries: list[Entry]) -> Measurement:
    """Return the mean F1 of written answers with its standard error, 0 to 1; higher is better.

    The F1 of an answer is the harmonic mean of the precision and the recall of its words against
    those of the right answer that is most like it, without case, punctuation and articles.

    Source: SQuAD, Rajpurkar et al., EMNLP 2016, arXiv 1606.05250, section 6.1. The evaluation
    script of SQuAD differs in five ways:

    - it deletes all ASCII punctuation, so that -5 equals 5 and 3.5 equals 35; here numbers keep
      their sign and point;
    - it keeps other punctuation, such as curly quotes, dashes and currency signs; here it is
      removed;
    - it compares answers without words, such as "A" and "The", as empty, and two empty answers
      are equal; here their texts are compared;
    - in version 1.1 two answers without words have F1 0;
    - it returns per cent; here 1 is the best.

    Nothing is returned for a task without written answers, with another way to judge them, or with
    an F1 of its own. The same holds for a task that picks a part of the answer by a pattern, as
    gsm8k does, because the right answer may be longer.
    """
    other_way = task.OUTPUT_TYPE != "generate_until" or callable(task.config.process_results)
    picks_a_part = "regex" in str(task.config.filter_list)
    if other_way or picks_a_part or not entries or "f1" in entries[0]["metrics"]:
        return Measurement()
    values = []
    for entry in _of_first_filter(entries):
        answer = str(entry["filtered_resps"][0])
        right = _references(task, entry["doc"])
        values.append(max(_overlap(answer, reference) for reference in right))
    return averaged(f"{name}/f1", values, "higher")


def _references(task: Any, document: Any) -> list[str]:
    """Return the right answers to a document.

    lm-eval has them as texts, numbers, or indices of choices.
    """
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else []
    references = []
    for right in _listed(task.doc_to_target(document)):
        is_index = bool(choices) and isinstance(right, int)
        references.append(str(choices[right] if is_index else right))
    return references


def _overlap(answer: str, reference: str) -> float:
    """Return the F1 of the words of an answer.

    If either text has no words, as "A", return whether the texts are equal. The script of SQuAD 2
    (Rajpurkar et al., ACL 2018, arXiv 1806.03822) compares what is left of them instead.
    """
    one, other = (Counter(_words(text)) for text in (answer, reference))
    if not one or not other:
        return float(answer.strip().lower() == reference.strip().lower())
    return 2 * (one & other).total() / (one.total() + other.total())


def _words(text: str) -> list[str]:
    """Return the words without punctuation and articles; a number keeps its sign and its point."""
    words = re.sub(r"_|(?!(?<!\w)-\d|(?<=\d)\.\d)[^\w\s]", "", text.lower()).split()
    return [word for word in words if word not in ("a", "an", "the")]
