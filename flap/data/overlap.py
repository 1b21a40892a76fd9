"""Which documents have been read: the rule by which nothing is measured on what a model was calibrated on.

Two texts overlap if they share 13 words in a row. A text of fewer words overlaps with another one only as a whole: it
is that text, or a line of it. Source of the rule: Brown et al., NeurIPS 2020, arXiv 2005.14165, appendix C.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from flap.data.text import Prompt, ngrams

OVERLAP = 13  # words in a row that two texts share only if one quotes the other, or both a third
FEWEST = 3  # words of a line or a field that tells something as a whole: "Who wrote Hamlet?", but not "yes"
INSTRUCTIONS = (
    10  # words that more documents share, and more than half of a task's, are its instructions
)
LABEL = re.compile(r"\s*\w+(?: \w+){0,3}:\s")  # stands before a text in a prompt: "Question: "
WORD = re.compile(r"\w+")

Words = Callable[[str], list[str]]  # how a text is split into the words that are compared
Runs = set[int]  # of words, each by its hash


class ReadText(NamedTuple):
    """A text that a run reads before it measures."""

    use: str  # "calibration", "vocabulary" or "recovery"
    source: str  # the config key and its value: "calibration.dataset=my.jsonl"
    texts: tuple[str, ...]  # its documents, or the turns of its prompts


class Document(NamedTuple):
    """The runs of words by which a document of a task is recognised."""

    runs: Runs
    parts: Runs  # of short texts, which count only if no other document has them: a question such as "What is it?"


class Overlap(NamedTuple):
    """The documents of a task that a run has read."""

    documents: frozenset[int]  # their numbers, in order from 0
    total: int  # documents of the task
    read: tuple[ReadText, ...]  # the texts that they are in


def as_written(text: str) -> list[str]:
    """Return the words of a text, with punctuation and case."""
    return text.split()


def letters_and_digits(text: str) -> list[str]:
    """Return the words of a text without punctuation and case, which prompts of a task may change."""
    return WORD.findall(text.lower())


def word_runs(text: str, words: Words = as_written) -> Runs:
    """Return every run of OVERLAP words of a text. Of a shorter text, return the run of all its words."""
    return _runs_in(words(text), fewest=1)


def line_runs(text: str, words: Words) -> Runs:
    """Return the run of each short line of a text, without a label such as "Question: " before it."""
    runs = Runs()
    for line in text.splitlines():
        label = LABEL.match(line)
        in_line = words(line[label.end() :] if label else line)
        if len(in_line) < OVERLAP:
            runs |= _runs_in(in_line, FEWEST)
    return runs


def document_of(whole: str, others: Iterable[str], words: Words) -> Document:
    """Return a document by its texts.

    whole: the text that tells what the document is, even if it is short. others: further texts, such as a question
    about a passage.
    """
    runs = word_runs(whole, words)
    parts = Runs()
    for text in dict.fromkeys(others):
        in_text = words(text)
        if len(in_text) < OVERLAP:
            parts |= _runs_in(in_text, FEWEST)
        elif text != whole:
            runs |= _runs_in(in_text, FEWEST)
    return Document(runs, parts)


def _runs_in(words: list[str], fewest: int) -> Runs:
    """Return the runs of words as `word_runs` does. Of fewer than `fewest` words, return nothing."""
    if len(words) >= OVERLAP:
        return set(map(hash, ngrams(words, OVERLAP)))
    return {hash(tuple(words))} if len(words) >= fewest else set()


def turns(prompt: Prompt) -> list[str]:
    """Return the texts of a prompt by which it is recognised; the last turn before the answer comes first.

    Instructions of the system are left out, as many prompts have the same ones. Short answers, such as "yes", are left
    out, too.
    """
    *earlier, last = prompt.messages
    answers = [str(one.get("content", "")) for one in earlier if one["role"] == "assistant"]
    asked = [
        str(one.get("content", "")) for one in earlier if one["role"] not in ("assistant", "system")
    ]
    if prompt.answer is not None:
        answers.append(prompt.answer)
    long_answers = [answer for answer in answers if len(as_written(answer)) >= OVERLAP]
    return [str(last.get("content", "")), *asked, *long_answers]


def overlaps(
    tasks: Sequence[Sequence[Document]], read: Sequence[ReadText], words: Words
) -> list[Overlap]:
    """Return which documents of each task a run has read. The texts are gone through once for all tasks."""
    telling = [_telling(documents) for documents in tasks]
    wanted = Runs()
    for documents in telling:
        for document in documents:
            wanted |= document.runs | document.parts
    found = [_runs_of(text, wanted, words) for text in read]

    of_tasks = []
    for documents in telling:
        numbers = [_containing(documents, runs) for runs in found]
        sources = [text for text, some in zip(read, numbers, strict=True) if some]
        of_tasks.append(Overlap(frozenset[int]().union(*numbers), len(documents), tuple(sources)))
    return of_tasks


def _telling(documents: Sequence[Document]) -> list[Document]:
    """Return the documents of a task without runs of words that do not tell them from others.

    Words that most documents have are instructions. A short part that two documents have tells neither.
    """
    counts = Counter(run for document in documents for run in document.runs)
    counts_of_parts = Counter(run for document in documents for run in document.parts)
    most = max(INSTRUCTIONS, len(documents) / 2)
    runs = {run for run, count in counts.items() if count <= most}
    parts = {run for run, count in counts_of_parts.items() if count == 1}
    return [Document(document.runs & runs, document.parts & parts) for document in documents]


def _runs_of(text: ReadText, wanted: Runs, words: Words) -> Runs:
    """Return those of the wanted runs that are in a text."""
    runs = Runs()
    for part in text.texts:
        runs |= (word_runs(part, words) | line_runs(part, words)) & wanted
    return runs


def _containing(documents: Sequence[Document], runs: Runs) -> frozenset[int]:
    """Return the numbers of the documents that have one of these runs."""
    return frozenset(
        n
        for n, document in enumerate(documents)
        if not runs.isdisjoint(document.runs | document.parts)
    )
