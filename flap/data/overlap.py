"""Find documents of evaluation tasks in the texts that flap has read, such as calibration texts.

Two texts overlap if they share 13 consecutive words. A text of fewer than 13 words overlaps with
another text only if it is, word for word, the whole other text or a whole line of it. A *run of
words* is a sequence of 13 consecutive words, or all words of a shorter text or line.

Source of the rule of 13 words: Brown et al., NeurIPS 2020, arXiv 2005.14165, appendix C.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from flap.data.text import Prompt, ngrams

# The number of words in a run of words. If two texts share this many consecutive words, one text
# probably quotes the other, or both texts quote a third text.
OVERLAP = 13
# A line or a field of a document can identify the document only if it has at least this many words.
# For example, "Who wrote Hamlet?" can identify a document, but "yes" cannot.
FEWEST = 3
# If more than this many documents of a task, and more than half of its documents, contain the same
# run of words, this run is part of an instruction. It then identifies no document.
INSTRUCTIONS = 10
LABEL = re.compile(r"\s*\w+(?: \w+){0,3}:\s")  # a label in a prompt, such as "Question: "
WORD = re.compile(r"\w+")

Words = Callable[[str], list[str]]  # a function that splits a text into the words that are compared
Runs = set[int]  # hashes of runs of words


class ReadText(NamedTuple):
    """A text that flap reads before it evaluates models."""

    # what the text is used for: "calibration", "vocabulary" (choosing the tokens that stay), or
    # "recovery" (training after compression)
    use: str
    source: str  # config key and value that name the text, as in "calibration.dataset=my.jsonl"
    texts: tuple[str, ...]  # the documents of the text, or the turns of all prompts in it


class Document(NamedTuple):
    """The runs of words by which a document of an evaluation task is recognised in other texts."""

    runs: Runs
    # Runs of words from the document's short texts, such as the question "What is it?". A run in
    # `parts` identifies the document only if no other document of the task has it in its `parts`.
    parts: Runs


class Overlap(NamedTuple):
    """The documents of an evaluation task that occur in the texts that flap has read."""

    documents: frozenset[int]  # indices of the documents that occur in these texts
    total: int  # number of all documents of the task
    read: tuple[ReadText, ...]  # the texts that contain these documents


def as_written(text: str) -> list[str]:
    """Split a text into words at white space. Punctuation and case are kept."""
    return text.split()


def letters_and_digits(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation.

    Case and punctuation are ignored, because they may differ between a document and the prompt that
    a task makes from the document.
    """
    return WORD.findall(text.lower())


def word_runs(text: str, words: Words = as_written) -> Runs:
    """Return all runs of OVERLAP words in a text. The words of a shorter text are a single run.

    words: a function that splits the text into words.
    """
    return _runs_in(words(text), fewest=1)


def line_runs(text: str, words: Words) -> Runs:
    """Return the runs of words of all short lines in a text. Each run is one line.

    A line is short if it has at least FEWEST and fewer than OVERLAP words. A label at the beginning
    of a line, such as "Question: ", is left out and does not count.
    """
    runs = Runs()
    for line in text.splitlines():
        label = LABEL.match(line)
        in_line = words(line[label.end() :] if label else line)
        if len(in_line) < OVERLAP:
            runs |= _runs_in(in_line, FEWEST)
    return runs


def document_of(whole: str, others: Iterable[str], words: Words) -> Document:
    """Collect the runs of words that identify a document.

    whole: the main text of the document. It identifies the document even if it is short.
    others: further texts of the document, such as a question about a passage. A text of fewer than
        OVERLAP words identifies the document only if no other document of the task has this text.
    words: a function that splits a text into words.
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
    """Return all runs of OVERLAP consecutive words. Fewer than OVERLAP words are a single run.

    If there are fewer than `fewest` words, return an empty set.
    """
    if len(words) >= OVERLAP:
        return set(map(hash, ngrams(words, OVERLAP)))
    return {hash(tuple(words))} if len(words) >= fewest else set()


def turns(prompt: Prompt) -> list[str]:
    """Return the turns that can identify a prompt: first the last turn, then the earlier turns.

    The right answer counts as a turn, too. System instructions are left out, because many prompts
    share them. Answers with fewer than OVERLAP words, such as "yes", are also left out.
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
    """Return, for each task, the documents that occur in the texts that flap has read.

    tasks: the documents of each task.
    read: the texts that flap has read. Each text is searched only once, for all tasks together.
    words: a function that splits a text into words.
    """
    telling = [_telling(documents) for documents in tasks]
    wanted = Runs()
    for documents in telling:
        for document in documents:
            wanted |= document.runs | document.parts
    found = [_wanted_runs_in(text, wanted, words) for text in read]

    of_tasks = []
    for documents in telling:
        numbers = [_indices_containing(documents, runs) for runs in found]
        sources = [text for text, some in zip(read, numbers, strict=True) if some]
        of_tasks.append(Overlap(frozenset[int]().union(*numbers), len(documents), tuple(sources)))
    return of_tasks


def _telling(documents: Sequence[Document]) -> list[Document]:
    """Return the documents without the runs of words that cannot identify a document.

    The removed runs are the runs of instructions, which most documents of the task share, and the
    runs of short texts (`Document.parts`) that at least two documents share.
    """
    counts = Counter(run for document in documents for run in document.runs)
    counts_of_parts = Counter(run for document in documents for run in document.parts)
    most = max(INSTRUCTIONS, len(documents) / 2)
    runs = {run for run, count in counts.items() if count <= most}
    parts = {run for run, count in counts_of_parts.items() if count == 1}
    return [Document(document.runs & runs, document.parts & parts) for document in documents]


def _wanted_runs_in(text: ReadText, wanted: Runs, words: Words) -> Runs:
    runs = Runs()
    for part in text.texts:
        runs |= (word_runs(part, words) | line_runs(part, words)) & wanted
    return runs


def _indices_containing(documents: Sequence[Document], runs: Runs) -> frozenset[int]:
    return frozenset(
        n
        for n, document in enumerate(documents)
        if not runs.isdisjoint(document.runs | document.parts)
    )
