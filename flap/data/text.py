"""A text: documents one after another."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A long text with its name and origin. documents: its parts in order; empty if it is a single one."""

    name: str
    text: str
    origin: str
    documents: tuple[str, ...] = ()

    @classmethod
    def joined(cls, name: str, documents: Sequence[str], origin: str, separator: str = "\n\n") -> "Text":
        """Return the text of documents with a separator between them."""
        return cls(name, separator.join(documents), origin, tuple(documents))

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the text in hex digits; it detects that two uses have the same text."""
        return hashlib.sha256(self.text.encode()).hexdigest()
