"""The end of a run on the console: the report's table, and where the rest lies."""

from rich.console import Console
from rich.table import Table

from flap.reporting.report import Report


def show(report: Report) -> None:
    """Print the table of report.md."""
    table = Table("", "dense", "pruned", title=report.config["run_name"], title_justify="left")
    for row in report.rows():
        table.add_row(*row)
    console = Console()
    console.print(table)
