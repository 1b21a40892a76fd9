"""Runs, checkpoints and plans side by side, differences to the first one: configs, numbers, costs and plans."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pandas import DataFrame
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from flap.results.comparability import notes
from flap.results.configs import with_classes
from flap.results.layer_widths import Layers, by_layer, overlaps
from flap.results.noise import paired
from flap.results.numbers import change, is_efficiency, side_by_side
from flap.results.run_folder import RunRecord, read_for_comparison
from flap.results.study import measured
from flap.results.table import console_table, measured_number
from flap.results.tables import Entry, Table, texts

Runs = Mapping[str, RunRecord]  # by letter
MARKED = {"clear": "[bold]{}[/bold]", "": "{}"}
NOTE = (
    "±: standard error; that of a difference is paired by the documents or windows that both runs have seen. Bold: "
    "clear of the noise (p < 0.05 in McNemar's test of right and wrong answers, else in the paired t-test). A "
    "difference without ± is not paired: the runs have kept no documents of it, or not the same ones."
)


@dataclass(frozen=True)
class Comparison:
    """All that is said of runs, checkpoints and plans (by letter), for the console and for the page."""

    runs: Runs
    notes: list[str]
    tables: list[Table]
    layers: Layers


def compare(paths: Sequence[Path]) -> Comparison:
    """Return the comparison of what lies at the paths: A, B, C …; differences are to the first one.

    Raises:
        ValueError: there are fewer than two or more than 26, or one of them is no finished run, checkpoint or plan.
    """
    if not 2 <= len(paths) <= len(ascii_uppercase):
        raise ValueError(f"{len(paths)} to compare; expected 2 to {len(ascii_uppercase)} runs, checkpoints or plans")
    runs = dict(zip(ascii_uppercase, map(read_for_comparison, paths), strict=False))
    plans = {letter: run.plan for letter, run in runs.items() if run.plan}
    layers = by_layer([*runs.values()], [*plans.values()])
    finished = {letter: run for letter, run in runs.items() if run.kind == "run"}
    tables = [_config(runs), *([_numbers(finished), _costs(finished)] if finished else []), overlaps(plans, layers)]
    return Comparison(runs, list(notes(runs)), [table for table in tables if table.rows or table.note], layers)


def _config(runs: Runs) -> Table:
    """Return the table of the config keys that differ."""
    known = {letter: with_classes(config) for letter, run in runs.items() if (config := run.report.get("config"))}
    configs = DataFrame([*known.values()], dtype=object).fillna("")
    differ = configs.loc[:, configs.nunique() > 1]
    note = (
        "" if len(differ.columns) else "No difference." if len(known) > 1 else "Fewer than two of them have a config."
    )
    return Table(["", *known], texts((key, *differ[key]) for key in differ), "Config", note)


def _numbers(runs: Runs) -> Table:
    """Return the table of the pruned models' numbers, and of the dense model's where all runs agree on them."""
    first = next(iter(runs.values()))
    names = side_by_side(measured(runs.values()), first.report.get("domains", {}))
    noise = {letter: paired(first, run, names) for letter, run in runs.items()}

    def number(letter: str, name: str) -> Entry:
        return Entry(measured_number(runs[letter].numbers("pruned"), name))

    def difference(letter: str, name: str) -> Entry:
        one, other = (run.numbers("pruned").get(name) for run in (first, runs[letter]))
        if is_efficiency(name):
            return Entry(relative(one, other))
        found = noise[letter].get(name)
        error, p_value = (None, None) if found is None else (found.error, found.p_value)
        return Entry(change(name, one, other, error, p_value), "clear" if found is not None and found.clear else "")

    columns = _across(runs, names, number, difference)
    dense = [[Entry(measured_number(run.numbers("dense"), name)) for name in names] for run in runs.values()]
    if all(one == dense[0] for one in dense):
        columns.insert(1, ("dense", dense[0]))
    heads, entries = zip(*columns, strict=True)
    rows = [*zip(*entries, strict=True)]
    return Table(heads, rows, "Numbers of the pruned models", NOTE if rows else "", numeric=True)


def _across(
    runs: Runs, names: Iterable[str], value: Callable[[str, str], Entry], difference: Callable[[str, str], Entry]
) -> list[tuple[str, list[Entry]]]:
    """Return columns: the names, the values of each run, and from the second run on the differences to the first."""
    first, columns = next(iter(runs)), [("", [Entry(name) for name in names])]
    for letter in runs:
        columns.append((letter, [value(letter, name) for name in names]))
        if letter != first:
            columns.append((f"{letter} - {first}", [difference(letter, name) for name in names]))
    return columns


def relative(one: float | None, other: float | None) -> str:
    """Return how much larger the other is: "+12.5%", or from twice as large on "3.1 times"."""
    if not one or other is None:
        return ""
    return f"{other / one:,.1f} times" if other >= 2 * one else f"{other / one - 1:+.1%}"


def _costs(runs: Runs) -> Table:
    """Return the table of sizes, seconds and memory."""
    first = next(iter(runs))
    stages = sorted({stage: 0 for run in runs.values() for stage in run.report.get("seconds", {})}, key="total".__eq__)
    kinds: dict[str, tuple[str, str, Callable[[Any], str]]] = {
        "parameters": ("parameters", "total_after", "{:,}".format),
        "decoder removed": ("ratio", "realised_decoder", "{:.4f}".format),
        **{f"seconds, {stage}": ("seconds", stage, "{:,.1f}".format) for stage in stages},
        **{f"peak memory, {place}": ("peak_memory_bytes", place, decimal) for place in ("host", "device")},
    }

    def cost(letter: str, name: str) -> Any:
        return runs[letter].value(*kinds[name][:2])

    def value(letter: str, name: str) -> Entry:
        found = cost(letter, name)
        return Entry("" if found is None else kinds[name][2](found))

    def difference(letter: str, name: str) -> Entry:
        return Entry(relative(cost(first, name), cost(letter, name)))

    heads, entries = zip(*_across(runs, kinds, value, difference), strict=True)
    rows = [row for row in zip(*entries, strict=True) if any(entry.text for entry in row[1:])]
    return Table(heads, rows, "Size, seconds and memory", numeric=True)


def show(comparison: Comparison) -> None:
    """Print the runs, the notes and the tables on the console."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a file or a pipe has no width: nothing is folded
    for letter, run in comparison.runs.items():
        console.print(f"[bold]{letter}[/bold]  {escape(run.folder)} ({run.kind})")
    for note in comparison.notes:
        console.print(f"[bold]{escape(note)}[/bold]")
    for table in comparison.tables:
        console.print(f"\n[bold]{table.title}[/bold]")
        if table.rows:
            rows = [[MARKED[entry.mark].format(escape(entry.text)) for entry in row] for row in table.rows]
            console.print(console_table(table.heads, rows, table.numeric))
        if table.note:
            console.print(escape(table.note), soft_wrap=not console.is_terminal)
