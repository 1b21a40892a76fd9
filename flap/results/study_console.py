"""Print the table of a study, with as many columns as fit into the console.

A study consists of the runs of one or more sweeps.
"""

from itertools import compress

from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from flap.results.study import Study
from flap.results.study_table import TableEntry, tabulate
from flap.results.tables import Table

UNFOLDED = 10_000  # a width of the console in characters into which every table fits


def show_study(study: Study) -> None:
    """Print the settings that differ between runs, and as many results as fit into the console."""
    console = Console(highlight=False)
    table = _without_constant_choices(study)
    left_out = list[str]()
    while len(table.heads) > 1 and _width(table, console) > console.width:
        *heads, last = table.heads
        left_out.insert(0, last.replace("\n", ""))
        table = Table(heads, [row[:-1] for row in table.rows])

    console.print(table.console())
    if left_out:
        print(f"{study.folder / 'study.csv'} also has {', '.join(left_out)}")


def _without_constant_choices(study: Study) -> Table:
    """Return the table of a study without the settings that are the same in all runs."""
    table = tabulate(study)
    names = [*table.choices, *table.results]
    constant = set[str]()
    if len(study.runs) > 1:
        constant = {*table.choices} - {*study.different}
    shown = [name not in constant for name in names]
    heads = [_broken(name) for name in compress(names, shown)]
    rows = [[_in_console(entry) for entry in compress(row, shown)] for row in table.rows]
    if any(run.state != "finished" for run in study.runs):
        heads.insert(0, "state")
        for run, values in zip(study.runs, rows, strict=True):
            values.insert(0, Text(run.state))
    return Table(heads, rows)


def _broken(heading: str) -> str:
    """Break the heading of a column into several lines, after "/" and " ", and before "@"."""
    return heading.replace("/", "/\n").replace(" ", " \n").replace("@", "\n@")


def _in_console(entry: TableEntry) -> Text:
    return Text(entry.text, "bold" if entry.mark == "best" else "")


def _width(table: Table, console: Console) -> int:
    """Return the width in characters that a table needs if no cell of the table is wrapped."""
    options = console.options.update(width=UNFOLDED)
    return Measurement.get(console, options, table.console()).maximum
