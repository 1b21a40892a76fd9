"""A text: documents one after another; and how much tokens repeat."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

T = TypeVar("T")
Span = tuple[int, int]  # where some characters begin, and where they end


@dataclass(frozen=True)
class Text:
    """A long text with its name and origin."""

    name: str
    text: str
    origin: str
    documents: tuple[str, ...] = ()  # its parts in order; empty if it is a single one
    counted: tuple[Span, ...] = ()  # the characters of each document's answer; empty: it has none

    @classmethod
    def joined(
        cls,
        name: str,
        documents: Sequence[str],
        origin: str,
        separator: str = "\n\n",
        counted: Sequence[Span] = (),
    ) -> "Text":
        return cls(name, separator.join(documents), origin, tuple(documents), tuple(counted))

    @property
    def counted_in_text(self) -> list[Span]:
        """The characters of the whole text whose tokens count; empty: all."""
        gap = (len(self.text) - sum(map(len, self.documents))) // max(1, len(self.documents) - 1)
        starts = accumulate((len(document) + gap for document in self.documents), initial=0)
        return [
            (at + first, at + end) for at, (first, end) in zip(starts, self.counted, strict=False)
        ]

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the text in hex digits; it detects that two uses have the same text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def jsonl(self) -> str:
        """The documents as the content of a .jsonl file, which `read_text` and other tools read."""
        return "".join(
            json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in self.documents
        )


@dataclass(frozen=True)
class Prompt:
    """What a model is asked."""

    messages: tuple[
        dict[str, Any], ...
    ]  # the turns before the answer, each with a role and its content
    answer: str | None  # the right one, None where there is none
    conversation: bool = False  # of a row with `messages`


def ngrams(items: Sequence[T], length: int) -> Iterator[tuple[T, ...]]:
    return zip(*(items[i:] for i in range(length)), strict=False)


def repetition(tokens: Sequence[int]) -> float:
    """Return the share of 4-grams that came before, 1 - distinct / all; 0 for less than four tokens. Lower is better.

    Source: seq-rep-4 of Welleck et al., ICLR 2020, arXiv 1908.04319.
    """
    grams = list(ngrams(tokens, 4))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
