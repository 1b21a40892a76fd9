"""Runs, checkpoints and plans side by side, differences to the first one: configs, numbers, costs and plans."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pandas import DataFrame
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from flap.allocation import PruningPlan
from flap.checkpoint.save import LABEL
from flap.results.comparability import notes
from flap.results.configs import with_classes
from flap.results.layer_widths import Layers, by_layer, overlaps
from flap.results.number_texts import change, in_order, is_efficiency, relative, with_error
from flap.results.run_folder import RunRecord, read_run
from flap.results.study import Study
from flap.results.tables import Columns, Entry, Table
from flap.storage import read_state
from flap.storage.status import STATUS

Runs = Mapping[str, RunRecord]  # by letter
EXPECTED = "expected the folder of a finished run, a checkpoint or a plan.json"
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
    runs = dict(zip(ascii_uppercase, map(_read, paths), strict=False))
    layers = by_layer(runs)
    finished = {letter: run for letter, run in runs.items() if run.kind == "run"}
    tables = [_config(runs), *([_numbers(finished), _costs(finished)] if finished else []), overlaps(layers)]
    return Comparison(runs, list(notes(runs)), [table for table in tables if table.rows or table.note], layers)


def _read(path: Path) -> RunRecord:
    """Return a finished run with its plan, a checkpoint, or a plan. Raises: ValueError: it is none of them."""
    if path.is_file():
        return RunRecord(str(path), plan=_plan(_json(path), path))
    if (path / STATUS).is_file() or (path / "report.json").is_file():
        return replace(_finished(path), folder=str(path), plan=_plan(_json(path / "plan.json"), path / "plan.json"))
    if (path / LABEL).is_file():
        label = _json(path / LABEL)
        return RunRecord(
            str(path), report=dict(label.get("provenance") or {}), plan=_plan(label.get("plan"), path / LABEL)
        )
    runs = sorted(status.parent for status in path.glob(f"*/{STATUS}"))
    if runs:
        finished = [run for run in runs if read_state(run) == "finished"]
        named = f"as {finished[0]}" if finished else "once they have finished: none has"
        raise ValueError(f"{path}: a folder of runs; name those to compare, {named}")
    raise ValueError(f"{path}: {'no run in it' if path.is_dir() else 'no such file or folder'}; {EXPECTED}")


def _finished(folder: Path) -> RunRecord:
    run = read_run(folder)
    if run.state == "damaged":
        raise ValueError(f"{folder}/{run.error}; resume=false runs it again")
    if run.state != "finished":
        why = f"failed ({run.error})" if run.state == "failed" else "has not finished: still running, or killed"
        raise ValueError(f"{folder}: the run {why}; {EXPECTED}")
    return run


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as a JSON object ({type(error).__name__}); {EXPECTED}") from error


def _plan(content: Any, path: Path) -> PruningPlan:
    try:
        return PruningPlan.from_dict(content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: holds no plan; {EXPECTED}") from error


def _config(runs: Runs) -> Table:
    """Return the table of the config keys that differ."""
    known = {letter: with_classes(config) for letter, run in runs.items() if (config := run.report.get("config"))}
    configs = DataFrame([*known.values()], dtype=object).fillna("").T
    differ = configs[configs.nunique(axis=1) > 1]
    note = "" if len(differ) else "No difference." if len(known) > 1 else "Fewer than two of them have a config."
    return Table.of(["", *known], differ.itertuples(name=None), title="Config", note=note)


def _numbers(runs: Runs) -> Table:
    """Return the table of the pruned models' numbers, and of the dense model's where all runs agree on them."""
    first, *others = runs
    names = in_order(Study(Path(), (), tuple(runs.values())).measured, runs[first].report.get("domains", {}))
    models = {letter: run.numbers("pruned") for letter, run in runs.items()}
    noise = {letter: runs[letter].differences_to(runs[first], names) for letter in others}

    def difference(letter: str, name: str) -> Entry:
        one, other, found = models[first], models[letter], noise[letter].get(name)
        if is_efficiency(name):
            return Entry(relative(one.get(name), other.get(name)))
        if found is None:
            return Entry(change(name, one, other))
        return Entry(change(name, one, other, found.error, found.p_value), "clear" if found.clear else "")

    dense = [run.numbers("dense") for run in runs.values()]
    agree = all(with_error(one, name) == with_error(dense[0], name) for one in dense for name in names)
    shown = ({"dense": dense[0]} if agree else {}) | models
    columns: Columns = {which: partial(with_error, numbers) for which, numbers in shown.items()}
    columns |= {f"{letter} - {first}": partial(difference, letter) for letter in others}
    note = NOTE if names else ""
    return Table.over(names, columns, title="Numbers of the pruned models", note=note, numeric=True)


def _costs(runs: Runs) -> Table:
    """Return the table of sizes, seconds and memory."""
    first, *others = runs
    stages = sorted({stage: 0 for run in runs.values() for stage in run.report.get("seconds", {})}, key="total".__eq__)
    kinds: dict[str, tuple[str, str, Callable[[Any], str]]] = {
        "parameters": ("parameters", "total_after", "{:,}".format),
        "decoder removed": ("ratio", "realised_decoder", "{:.4f}".format),
        **{f"seconds, {stage}": ("seconds", stage, "{:,.1f}".format) for stage in stages},
        **{f"peak memory, {place}": ("peak_memory_bytes", place, decimal) for place in ("host", "device")},
    }

    def cost(letter: str, name: str) -> Any:
        return runs[letter].value(*kinds[name][:2])

    def shown(letter: str, name: str) -> str:
        return "" if (found := cost(letter, name)) is None else kinds[name][2](found)

    def difference(letter: str, name: str) -> str:
        return relative(cost(first, name), cost(letter, name))

    columns: Columns = {letter: partial(shown, letter) for letter in runs}
    columns |= {f"{letter} - {first}": partial(difference, letter) for letter in others}
    known = [name for name in kinds if any(cost(letter, name) is not None for letter in runs)]
    return Table.over(known, columns, title="Size, seconds and memory", numeric=True)


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
            console.print(table.console())
        if table.note:
            console.print(escape(table.note), soft_wrap=not console.is_terminal)
