"""The table of a study: the choices and results of each run, and marks of what is best."""

from collections.abc import Callable
from math import isfinite

from pandas import Series

from flap.results.number_texts import short
from flap.results.run_folder import RunRecord
from flap.results.study import Study
from flap.results.tables import Mark, Table, TableEntry

CHOSEN = ("sweep", "model", "method", "metric", "structure", "options", "seed", "ratio")
# Columns that are left out if all runs agree.
VARYING = ("sweep", "model", "method", "options", "seed")

Marks = dict[tuple[int, str], Mark]  # by the run's row in `study.frame` and the number's name


def choices(study: Study) -> tuple[str, ...]:
    """Return the columns of a study's table that are choices; the others are results."""
    return tuple(name for name in CHOSEN if name not in VARYING or len(study.values(name)) > 1)


def tabulate(study: Study, which: str = "pruned") -> Table:
    """Return the table of the runs, or with "dense" of the dense models.

    Standard errors stand next to their numbers, and the best number of each ratio is marked. A
    dense model has no choices but the model.
    """
    columns = choices(study)
    if which == "dense":
        runs = study.of(study.dense)
        marks: Marks = {}
        filled: tuple[str, ...] = ("model",)
    else:
        runs = study.runs
        marks = _marks(study)
        filled = columns

    results = ["removed", "parameters"]
    if any(run.value("vocabulary", "after") for run in study.runs):
        results.append("vocabulary")
    results += [*study.measured, "seconds"]

    rows = []
    for i, run in enumerate(runs):
        row = [_choice(run, name) if name in filled else TableEntry() for name in columns]
        for name in results:
            row.append(_result(run, name, which)._replace(mark=marks.get((i, name), "")))
        rows.append(tuple(row))
    return Table((*columns, *results), rows)


def _choice(run: RunRecord, name: str) -> TableEntry:
    value = getattr(run, name)
    return TableEntry() if value is None else TableEntry(str(value), key=value)


def _result(run: RunRecord, name: str, which: str) -> TableEntry:
    """Return the value of a result column for a run's "pruned" or "dense" model."""
    value, text_of = _sizes(run, which).get(name) or _measured(run, name, which)
    if value is None:
        return TableEntry()
    return TableEntry(text_of(value), key=value) if isfinite(value) else TableEntry("not finite")


Sized = tuple[float | None, Callable[[float], str]]  # a value, and the function that formats it


def _sizes(run: RunRecord, which: str) -> dict[str, Sized]:
    """Return by column what a run's report says of a model besides what was measured."""
    if which == "dense":
        when = "before"
        removed: float | None = 0.0
        seconds = None
    else:
        when = "after"
        removed = run.value("ratio", "realised_decoder")
        seconds = run.value("seconds", "total")
    return {
        "removed": (removed, "{:.4f}".format),
        "parameters": (run.value("parameters", f"total_{when}"), short),
        "vocabulary": (run.value("vocabulary", when), "{:,}".format),
        "seconds": (seconds, "{:,.1f}".format),
    }


def _measured(run: RunRecord, name: str, which: str) -> Sized:
    numbers = run.numbers(which)
    error = numbers.get(f"{name}_stderr")
    if error is None:
        return numbers.get(name), short
    return numbers.get(name), lambda value: f"{value:.4f} ± {error:.4f}"


def _marks(study: Study) -> Marks:
    """Return the marks of the quality numbers among the runs of one model and ratio.

    "best": the number is better than that of every other run, clear of the noise.
    "near": it is within the noise of the best number, or it is the best one and others are within
    its noise.

    The difference to the best number has no known error if the runs have kept no documents, or
    not the same ones. Then nothing is marked "best". If the runs do not say whether higher or
    lower values of a number are better, nothing is marked.
    """
    marks: Marks = {}
    for _, rows in study.results.groupby(["model", "requested"], dropna=False, sort=False):
        for name in study.measured:
            if study.better(name):
                marks |= _marks_of(study, rows[f"pruned/{name}"].dropna(), name)
    return marks


def _marks_of(study: Study, values: Series, name: str) -> Marks:
    """Return the marks of the runs that have a number. values: by the run's row."""
    ranked = values.sort_values(ascending=study.better(name) == "lower", kind="stable")
    if len(ranked) < 2:
        return {}

    marks: Marks = {}
    unknown = False
    best, *others = ranked.index
    for i in others:
        difference = study.runs[i].differences_to(study.runs[best], [name]).get(name)
        if difference is None:
            unknown = True
        elif not difference.clear:
            marks[i, name] = "near"

    if marks:
        marks[best, name] = "near"
    elif not unknown:
        marks[best, name] = "best"
    return marks
