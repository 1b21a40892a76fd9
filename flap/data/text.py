"""Classes for texts and prompts, and a function that measures how much a text repeats itself."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

T = TypeVar("T")
# a span of text: the index of its first character, and of the first character after it
Span = tuple[int, int]


@dataclass(frozen=True)
class Text:
    """A text with its name and origin."""

    name: str
    text: str
    origin: str
    # the documents that `text` consists of, in order; may be empty if `text` is a single document
    documents: tuple[str, ...] = ()
    # the span of the answer in each document; empty if the text has no answers
    counted: tuple[Span, ...] = ()

    @classmethod
    def joined(
        cls,
        name: str,
        documents: Sequence[str],
        origin: str,
        separator: str = "\n\n",
        counted: Sequence[Span] = (),
    ) -> "Text":
        """Join documents into one text. counted: the span of the answer in each document."""
        return cls(name, separator.join(documents), origin, tuple(documents), tuple(counted))

    @property
    def counted_in_text(self) -> list[Span]:
        """The spans of the answers in the whole text; empty if the text has no answers."""
        # number of characters in all separators between documents
        separators = len(self.text) - sum(map(len, self.documents))
        separator = separators // max(1, len(self.documents) - 1)
        offsets = accumulate((len(document) + separator for document in self.documents), initial=0)
        spans = list[Span]()
        for offset, (start, end) in zip(offsets, self.counted, strict=False):
            spans.append((offset + start, offset + end))
        return spans

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text in hex digits. Texts with equal hashes count as the same text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def jsonl(self) -> str:
        """The documents in the format of a .jsonl file that `read_text` can read."""
        lines = [json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in self.documents]
        return "".join(lines)


@dataclass(frozen=True)
class Prompt:
    """A conversation that a model continues with an answer, and the right answer if it is known."""

    # the turns before the answer, with their roles and contents
    messages: tuple[dict[str, Any], ...]
    answer: str | None  # the right answer; None if it is not known
    conversation: bool = False  # whether the prompt comes from a file's column `messages`


def ngrams(items: Sequence[T], length: int) -> Iterator[tuple[T, ...]]:
    """Yield all sequences of `length` consecutive items."""
    return zip(*(items[i:] for i in range(length)), strict=False)


def repetition(tokens: Sequence[int]) -> float:
    """Return the share of repeated 4-grams, 1 - number of distinct 4-grams / number of 4-grams.

    A 4-gram is a sequence of four consecutive tokens. A lower share means less repetition. For
    fewer than four tokens, the share is 0.

    Source: Welleck et al., ICLR 2020, arXiv 1908.04319, where this share is called seq-rep-4.
    """
    grams = list(ngrams(tokens, 4))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
