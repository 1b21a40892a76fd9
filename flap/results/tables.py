"""A table of results, for the console and in Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from flap.results.markdown_text import escaped

# maximum width of the first column on the console, in characters; longer names are wrapped
LONGEST_NAME = 50


def wide_console() -> Console:
    """Return a console that does not wrap lines if the output is a file or a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    return console


class Table(NamedTuple):
    """A table: its headings and rows. A value with a style, such as bold, is a `Text` of rich."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Text]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = []
        for row in (self.heads, *self.rows):
            lines.append(f"| {' | '.join(escaped(str(value)) for value in row)} |")
        lines.insert(1, "|" + "---|" * len(self.heads))
        return "\n".join(lines)

    def console(self, numeric: bool = False) -> rich_table.Table:
        """Return the table for the console.

        numeric: whether all columns except the first contain numbers, which are aligned right.
        """
        table = rich_table.Table(pad_edge=False, collapse_padding=True)
        for i, heading in enumerate(self.heads):
            table.add_column(heading, overflow="fold", justify="right" if numeric and i else "left")
        # Set `width` of the first column, so that rich narrows only the other columns of a table
        # that is too wide for the console. With `min_width` instead, the table would stay too wide,
        # and the console would cut the last column off.
        lines = self.heads[0].splitlines() + [str(row[0]) for row in self.rows]
        longest = max((len(line) for line in lines), default=0)
        table.columns[0].width = min(longest, LONGEST_NAME)
        for row in self.rows:
            table.add_row(*(Text(value) if isinstance(value, str) else value for value in row))
        return table
