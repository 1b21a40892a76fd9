"""The comparison on the console."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from flap.results.comparison import Comparison
from flap.results.tables import Table


def show(comparison: Comparison) -> None:
    """Print the subjects, the notes and the tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a file or a pipe has no width: nothing is folded
    for subject in comparison.subjects:
        console.print(f"[bold]{subject.letter}[/bold]  {escape(str(subject.path))} ({subject.kind})")
    for note in comparison.notes:
        console.print(f"[bold]{escape(note)}[/bold]")
    for table in comparison.tables:
        _print(console, table)


def _print(console: Console, table: Table) -> None:
    console.print(f"\n[bold]{table.title}[/bold]")
    if table.rows:
        shown = RichTable(pad_edge=False, collapse_padding=True)
        for i, head in enumerate(table.heads):
            shown.add_column(head, overflow="fold", justify="right" if i and table.numeric else "left")
        for row in table.rows:
            shown.add_row(*(f"[bold]{escape(text)}[/bold]" if clear else escape(text) for text, clear in row))
        console.print(shown)
    if table.note:
        console.print(escape(table.note), soft_wrap=not console.is_terminal)
