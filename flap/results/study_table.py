"""The table of a study: a row for each run with its choices, its results, and marks of what is best."""

from math import isfinite

from pandas import Series

from flap.results.number_texts import short
from flap.results.run_folder import RunRecord
from flap.results.study import Study
from flap.results.tables import Mark, Table, TableEntry

CHOSEN = ("sweep", "model", "method", "metric", "structure", "options", "seed", "ratio")
VARYING = (
    "sweep",
    "model",
    "method",
    "options",
    "seed",
)  # columns that are left out if all runs agree


def choices(study: Study) -> tuple[str, ...]:
    """Return the columns of a study's table that are choices; the others are results."""
    return tuple(name for name in CHOSEN if name not in VARYING or len(study.values(name)) > 1)


def tabulate(study: Study, which: str = "pruned") -> Table:
    """Return the table of the runs, or with "dense" of the dense models, which have no choices but the model.

    Standard errors stand next to their numbers, and the best of each ratio is marked.
    """
    trimmed = ("vocabulary",) if any(run.value("vocabulary", "after") for run in study.runs) else ()
    chosen = choices(study)
    results = ("removed", "parameters", *trimmed, *study.measured, "seconds")
    runs, marked = (study.runs, _marks(study)) if which == "pruned" else (study.of(study.dense), {})
    said = chosen if which == "pruned" else ("model",)
    rows = [
        (
            *(_choice(getattr(run, name)) if name in said else TableEntry() for name in chosen),
            *(
                _result(run, name, which)._replace(mark=marked.get((i, name), ""))
                for name in results
            ),
        )
        for i, run in enumerate(runs)
    ]
    return Table((*chosen, *results), rows)


def _choice(value: float | str | None) -> TableEntry:
    return TableEntry() if value is None else TableEntry(str(value), key=value)


def _result(run: RunRecord, name: str, which: str) -> TableEntry:
    """Return the value of a result column for a run's "pruned" or "dense" model."""
    dense = which == "dense"
    numbers = run.numbers(which)
    error = numbers.get(f"{name}_stderr")
    value, form = {
        "removed": (0.0 if dense else run.value("ratio", "realised_decoder"), "{:.4f}".format),
        "parameters": (run.value("parameters", "total_before" if dense else "total_after"), short),
        "vocabulary": (run.value("vocabulary", "before" if dense else "after"), "{:,}".format),
        "seconds": (None if dense else run.value("seconds", "total"), "{:,.1f}".format),
    }.get(name, (numbers.get(name), short if error is None else f"{{:.4f}} ± {error:.4f}".format))
    if value is None:
        return TableEntry()
    return TableEntry(form(value), key=value) if isfinite(value) else TableEntry("not finite")


def _marks(study: Study) -> dict[tuple[int, str], Mark]:
    """Return the mark of each quality number, by the run's row in `study.frame` and the number's name.

    "best": it is better than every other run's of the same model and ratio, clear of the noise. "near": it is within
    the noise of the best number, or is the best and has others within its noise. Where the difference to the best has
    no known error, because the runs have kept no documents or not the same ones, nothing is marked "best". Of a number
    of which the runs do not say whether higher or lower values are better, nothing is marked.
    """
    marks: dict[tuple[int, str], Mark] = {}
    for _, rows in study.results.groupby(["model", "requested"], dropna=False, sort=False):
        for name in filter(study.better, study.measured):
            marks |= _marks_of(study, rows[f"pruned/{name}"].dropna(), name)
    return marks


def _marks_of(study: Study, values: Series, name: str) -> dict[tuple[int, str], Mark]:
    """Return the marks of the runs that have a number. values: by the run's row."""
    ranked = values.sort_values(ascending=study.better(name) == "lower", kind="stable")
    if len(ranked) < 2:
        return {}
    best, *others = ranked.index
    differences = {
        i: study.runs[i].differences_to(study.runs[best], [name]).get(name) for i in others
    }
    marked: dict[tuple[int, str], Mark] = {
        (i, name): "near" for i, one in differences.items() if one and not one.clear
    }
    if marked or None not in differences.values():
        marked[best, name] = "near" if marked else "best"
    return marked
