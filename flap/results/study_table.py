"""The table of a study: a row for each run, with its choices and its results."""

from math import isfinite

from flap.results.noise import marks
from flap.results.number_texts import short
from flap.results.run_folder import RunRecord
from flap.results.study import Study
from flap.results.tables import Entry, Table

CHOSEN = ("sweep", "model", "method", "metric", "structure", "options", "seed", "ratio")
VARYING = ("sweep", "model", "method", "options", "seed")  # columns that are left out if all runs agree


def choices(study: Study) -> tuple[str, ...]:
    """Return the columns of a study's table that are choices; the others are results."""
    return tuple(name for name in CHOSEN if name not in VARYING or len(study.values(name)) > 1)


def tabulate(study: Study, which: str = "pruned") -> Table:
    """Return the table of the runs, or with "dense" of the dense models, which have no choices but the model.

    Standard errors stand next to their numbers, and the best of each ratio is marked.
    """
    chosen, results = choices(study), ("removed", "parameters", *study.measured, "seconds")
    runs, marked = (study.runs, marks(study)) if which == "pruned" else (study.of(study.dense), {})
    said = chosen if which == "pruned" else ("model",)
    rows = [
        (
            *(_choice(getattr(run, name)) if name in said else Entry() for name in chosen),
            *(_result(run, name, which)._replace(mark=marked.get((i, name), "")) for name in results),
        )
        for i, run in enumerate(runs)
    ]
    return Table((*chosen, *results), rows)


def _choice(value: float | str | None) -> Entry:
    return Entry() if value is None else Entry(str(value), key=value)


def _result(run: RunRecord, name: str, which: str) -> Entry:
    """Return the value of a result column for a run's "pruned" or "dense" model."""
    dense, numbers = which == "dense", run.numbers(which)
    error = numbers.get(f"{name}_stderr")
    value, form = {
        "removed": (0.0 if dense else run.value("ratio", "realised_decoder"), "{:.4f}".format),
        "parameters": (run.value("parameters", "total_before" if dense else "total_after"), short),
        "seconds": (None if dense else run.value("seconds", "total"), "{:,.1f}".format),
    }.get(name, (numbers.get(name), short if error is None else f"{{:.4f}} ± {error:.4f}".format))
    if value is None:
        return Entry()
    return Entry(form(value), key=value) if isfinite(value) else Entry("not finite")
