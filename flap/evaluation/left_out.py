"""Leave out documents of tasks that also occur in the run's calibration or training texts.

A task is a measurement, such as the accuracy on boolq. Its documents are, for example, questions.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from flap.data.overlap import Overlap, ReadText, Words, overlaps
from flap.evaluation.base import Leaving, Task


def without_read(tasks: Sequence[Task], read: Sequence[ReadText]) -> list[Task]:
    """Return the tasks without the documents that also occur in the texts `read`.

    read: the texts that the run has used for calibration or training.

    Raises:
        ValueError: a task has no documents left, or too few documents for its few-shot examples.
    """
    found = _overlaps(tasks, read)
    return [_without(task, found.get(task.name)) for task in tasks]


def _overlaps(tasks: Sequence[Task], read: Sequence[ReadText]) -> dict[str, Overlap]:
    """Return a dict from the name of each task to its documents that also occur in `read`.

    Tasks that cannot leave out documents are not in the dict.
    """
    by_words = defaultdict[Words, dict[str, Leaving]](dict)
    for task in tasks:
        if task.leaving is not None and read:
            by_words[task.leaving.words][task.name] = task.leaving

    found: dict[str, Overlap] = {}
    for words, group in by_words.items():
        documents = [leaving.documents() for leaving in group.values()]
        found |= zip(group, overlaps(documents, read, words), strict=True)
    return found


def _without(task: Task, overlap: Overlap | None) -> Task:
    leaving = task.leaving
    if leaving is None or overlap is None or not overlap.documents:
        return task
    number = len(overlap.documents)
    if number == overlap.total:
        raise ValueError(
            f"{leaving.field}: all {number:,} documents were read for {_readers(overlap)}; "
            "nothing is left to measure; choose another task or another text"
        )
    try:
        remaining = leaving.without(overlap.documents)
    except ValueError as error:
        are_left_out = f"{number:,} of {overlap.total:,} documents are left out"
        raise ValueError(
            f"{error}; {are_left_out}, as they were read for {_readers(overlap)}"
        ) from error
    left_out = tuple(sorted(overlap.documents))
    return replace(remaining, left_out=left_out, evaluator=task.evaluator)


def _readers(overlap: Overlap) -> str:
    """Return the names of the texts in which documents occur, and the uses of these texts.

    An example is "calibration (calibration.dataset=my.jsonl)".
    """
    sources: dict[str, list[str]] = {}
    for text in overlap.read:
        sources.setdefault(text.use, []).append(text.source)
    return " and ".join(f"{use} ({', '.join(texts)})" for use, texts in sources.items())
