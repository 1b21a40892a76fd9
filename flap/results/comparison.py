"""Finished runs side by side: what should be alike and is not, config keys that differ, numbers with paired errors."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pandas import DataFrame
from rich.console import Console
from rich.markup import escape

from flap.results.configs import CHOICES, varying
from flap.results.number_texts import change, in_order, is_efficiency, relative, with_error
from flap.results.run_folder import RunRecord, read_run
from flap.results.tables import Columns, Table, TableEntry

Runs = Mapping[str, RunRecord]  # by letter: A, B, C …
NOTE = (
    "±: standard error; that of a difference is paired by the documents or windows that both runs have seen. Bold: "
    "clear of the noise (p < 0.05 in McNemar's test of right and wrong answers, else in the paired t-test). A "
    "difference without ± is not paired: the runs have kept no documents of it, or not the same ones."
)


def read_runs(folders: Sequence[Path]) -> Runs:
    """Return the finished runs in these folders by letter.

    Raises:
        ValueError: one of them has not finished, or cannot be read; or there are more than 26.
    """
    if len(folders) > len(ascii_uppercase):
        raise ValueError(f"{len(folders)} runs to compare; expected at most {len(ascii_uppercase)}")
    runs = [read_run(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if run.state != "finished":
            raise ValueError(f"{folder}: {run.state} ({run.error}); expected finished runs")
    return dict(zip(ascii_uppercase, runs, strict=False))


def print_comparison(folders: Sequence[Path]) -> None:
    """Print what differs between runs that should be alike, and both tables. Raises: as `read_runs`."""
    runs = read_runs(folders)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a file or a pipe has no width: nothing is folded
    for letter, folder in zip(runs, folders, strict=True):
        console.print(f"[bold]{letter}[/bold]  {escape(str(folder))}")
    for notice in mismatches([*runs.values()]):
        console.print(f"[bold]{escape(notice)}[/bold]")
    tables = {
        "Config": config_table(runs).console(),
        "Numbers of the pruned models": numbers_table(runs).console(True),
    }
    for title, table in tables.items():
        console.print(
            f"\n[bold]{title}[/bold]", table if table.rows else "No difference.", sep="\n"
        )
    console.print(NOTE, soft_wrap=not console.is_terminal)


def config_table(runs: Runs) -> Table:
    """Return the table of the config keys that differ."""
    chosen = [
        {name: str(getattr(run, name)) for name in CHOICES} | run.config for run in runs.values()
    ]
    configs = DataFrame(chosen, dtype=object).fillna("").T
    differ = configs[configs.nunique(axis=1) > 1]
    return Table.of(["", *runs], differ.itertuples(name=None))


def numbers_table(runs: Runs) -> Table:
    """Return the table of the pruned models' numbers, and what they differ by from those of the first run."""
    first, *others = runs
    models = {letter: run.numbers("pruned") for letter, run in runs.items()}
    measured = dict.fromkeys(
        name for numbers in models.values() for name in numbers if not name.endswith("_stderr")
    )
    names = in_order(measured, runs[first].report.get("domains", {}))
    noise = {letter: runs[letter].differences_to(runs[first], names) for letter in others}

    def difference(letter: str, name: str) -> TableEntry:
        before = models[first]
        after = models[letter]
        paired = noise[letter].get(name)
        if is_efficiency(name):
            return TableEntry(relative(before.get(name), after.get(name)))
        if paired is None:
            return TableEntry(change(name, before, after))
        return TableEntry(
            change(name, before, after, paired.error, paired.p_value),
            "clear" if paired.clear else "",
        )

    columns: Columns = {letter: partial(with_error, numbers) for letter, numbers in models.items()}
    columns |= {f"{letter} - {first}": partial(difference, letter) for letter in others}
    return Table.over(names, columns)


def mismatches(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield a sentence for each way in which finished runs are not alike, besides what their sweeps vary."""
    models = _distinct(run.model for run in runs)
    if len(models) > 1:
        yield (
            f"Runs of different models: {', '.join(models)}. Their perplexities can be compared only where the "
            "models have the same tokenizer."
        )
    libraries = dict.fromkeys(name for run in runs for name in run.report.get("versions", {}))
    versions = {name: _distinct(run.value("versions", name) for run in runs) for name in libraries}
    versions["commit"] = _distinct((run.value("git", "commit") or "")[:12] for run in runs)
    differ = [
        f"{name} {' and '.join(values)}" for name, values in versions.items() if len(values) > 1
    ]
    if differ:
        yield f"Runs of different versions, from which differences may come: {', '.join(differ)}."
    yield from _other_documents(runs)
    for key, values in varying(run.config for run in runs).items():
        if key.startswith("eval."):
            yield f"Not measured alike: {key} is {' or '.join(values)}."


def _other_documents(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield a sentence for each task that runs have measured on different documents, as they had read others."""
    tasks = dict.fromkeys(task for run in runs for task in run.report.get("left_out", {}))
    for task in tasks:
        measured = [run for run in runs if run.value("inputs", task)]
        if len({run.value("inputs", task) for run in measured}) > 1:
            numbers = sorted({run.value("left_out", task) or 0 for run in measured})
            left_out = " or ".join(f"{number:,}" for number in numbers)
            yield (
                f"Not measured on the same documents: {task}, of which runs leave out {left_out} documents that they "
                "have read. Their numbers are not paired."
            )


def _distinct(values: Iterator[Any]) -> list[str]:
    return sorted({*values} - {None, ""})
