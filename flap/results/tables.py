"""A table of results, which the console, Markdown and the pages show."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich import table as rich_table
from rich.text import Text

from flap.results.markdown_text import escaped

Mark = Literal[
    "best", "near", "clear", ""
]  # "best", "near": on the page of a study; "clear": a difference, in bold


class TableEntry(NamedTuple):
    """A value of a table."""

    text: str = ""
    mark: Mark = ""
    key: float | str | None = None  # to sort by; None is last


Columns = dict[str, Callable[[str], str | TableEntry]]  # by heading: functions of a row's name


@dataclass(frozen=True)
class Table:
    """A table: its headings and rows."""

    heads: Sequence[str]
    rows: Sequence[tuple[TableEntry, ...]]

    @classmethod
    def of(cls, heads: Iterable[str], rows: Iterable[Iterable[str | TableEntry]]) -> "Table":
        """Return a table of texts and entries."""
        return cls(
            tuple(heads),
            [
                tuple(one if isinstance(one, TableEntry) else TableEntry(one) for one in row)
                for row in rows
            ],
        )

    @classmethod
    def over(cls, names: Iterable[str], columns: Columns) -> "Table":
        """Return a table with a row for each name."""
        return cls.of(
            ["", *columns], [[name, *(value(name) for value in columns.values())] for name in names]
        )

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [_markdown_row(self.heads), "|" + "---|" * len(self.heads)]
        for row in self.rows:
            lines.append(_markdown_row(entry.text for entry in row))
        return "\n".join(lines)

    def console(self, numeric: bool = False) -> rich_table.Table:
        """Return the table for the console. numeric: whether all columns but the first are of numbers."""
        table = rich_table.Table(pad_edge=False, collapse_padding=True)
        for i, heading in enumerate(self.heads):
            table.add_column(heading, overflow="fold", justify="right" if i and numeric else "left")
        for row in self.rows:
            table.add_row(
                *(Text(entry.text, "bold" if entry.mark == "clear" else "") for entry in row)
            )
        return table


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"
