"""The tables of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Entry(NamedTuple):
    """A value of a table. clear: it is a difference that is clear of the noise, and shown in bold."""

    text: str
    clear: bool = False


@dataclass(frozen=True)
class Table:
    """A table: its headings, of which the first is of the rows' names, its rows, and a sentence below it."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[Entry, ...]]
    note: str = ""
    numeric: bool = False
