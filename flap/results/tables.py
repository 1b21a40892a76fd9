"""A table of results, which the console, Markdown and the pages show."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich import table as rich_table
from rich.text import Text

from flap.results.markdown_text import escaped

# "best" and "near" mark numbers on the page of a study; "clear" marks differences, in bold.
Mark = Literal["best", "near", "clear", ""]


class TableEntry(NamedTuple):
    """A value of a table."""

    text: str = ""
    mark: Mark = ""
    key: float | str | None = None  # the value to sort by; rows with None come last


Columns = dict[str, Callable[[str], str | TableEntry]]  # by heading: functions of a row's name


@dataclass(frozen=True)
class Table:
    """A table: its headings and rows."""

    heads: Sequence[str]
    rows: Sequence[tuple[TableEntry, ...]]

    @classmethod
    def of(cls, heads: Iterable[str], rows: Iterable[Iterable[str | TableEntry]]) -> "Table":
        """Return a table of texts and entries."""
        return cls(tuple(heads), [tuple(map(_entry, row)) for row in rows])

    @classmethod
    def over(cls, names: Iterable[str], columns: Columns) -> "Table":
        """Return a table with a row for each name."""
        rows = [[name, *(value(name) for value in columns.values())] for name in names]
        return cls.of(["", *columns], rows)

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [_markdown_row(self.heads), "|" + "---|" * len(self.heads)]
        for row in self.rows:
            lines.append(_markdown_row(entry.text for entry in row))
        return "\n".join(lines)

    def console(self, numeric: bool = False) -> rich_table.Table:
        """Return the table for the console.

        numeric: whether all columns but the first hold numbers.
        """
        table = rich_table.Table(pad_edge=False, collapse_padding=True)
        for i, heading in enumerate(self.heads):
            right = numeric and i > 0
            table.add_column(heading, overflow="fold", justify="right" if right else "left")
        for row in self.rows:
            table.add_row(
                *(Text(entry.text, "bold" if entry.mark == "clear" else "") for entry in row)
            )
        return table


def _entry(value: str | TableEntry) -> TableEntry:
    return value if isinstance(value, TableEntry) else TableEntry(value)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"
