"""The table of a study for people, which study.md and index.html show."""

from dataclasses import dataclass

from flap.results.noise import Mark, marks
from flap.results.study import Cell, Study

CHOICE_COLUMNS = ("sweep", "model", "method", "metric", "structure", "options", "seed", "ratio")
VARYING = ("sweep", "model", "method", "options", "seed")  # columns that are left out if all cells agree


@dataclass(frozen=True)
class Value:
    """A value of the table: its text, its sort key (None is last), and its mark (`flap.results.noise`)."""

    text: str = ""
    key: float | str | None = None
    mark: Mark = ""


@dataclass(frozen=True)
class Row:
    """A row of the table: a cell and its values, one for each column."""

    cell: Cell
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Table:
    """The table: columns of choices and of results, one row for each dense model and for each cell."""

    choices: tuple[str, ...]
    results: tuple[str, ...]
    dense: tuple[Row, ...]
    rows: tuple[Row, ...]


def tabulate(study: Study) -> Table:
    """Return the table of a study: with standard errors beside their numbers, and the best of each ratio marked."""
    choices = tuple(name for name in CHOICE_COLUMNS if name not in VARYING or len(study.values(name)) > 1)
    results = ("removed", "parameters", *study.measured, "seconds")
    marked = marks(study)

    def row(cell: Cell, which: str) -> Row:
        shown = choices if which == "pruned" else ("model",)
        chosen = [_choice(getattr(cell, name)) if name in shown else Value() for name in choices]
        return Row(
            cell, (*chosen, *(_result(cell, name, which, marked.get((cell.folder, name), "")) for name in results))
        )

    dense = tuple(row(cell, "dense") for cell in study.dense())
    return Table(choices, results, dense, tuple(row(cell, "pruned") for cell in study.cells))


def show(value: float | None) -> str:
    """Return a number as text, with few digits; empty for None."""
    if value is None or isinstance(value, int):
        return "" if value is None else f"{value:,}"
    if abs(value) >= 1e12:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def _choice(value: float | str | None) -> Value:
    return Value("" if value is None else str(value), value)


def _result(cell: Cell, name: str, which: str, mark: Mark) -> Value:
    """Return the value of a result column. mark: that of a pruned model's number."""
    dense = which == "dense"
    if name == "removed":
        share = 0.0 if dense else cell.value("ratio", "realised_decoder")
        return Value() if share is None else Value(f"{share:.4f}", share)
    if name == "parameters":
        count = cell.value("parameters", "total_before" if dense else "total_after")
        return Value(show(count), count)
    if name == "seconds":
        seconds = None if dense else cell.value("seconds", "total")
        return Value("" if seconds is None else f"{seconds:,.1f}", seconds)
    return _measurement(cell.numbers(which), name, "" if dense else mark)


def _measurement(numbers: dict[str, float | None], name: str, mark: Mark) -> Value:
    if name not in numbers:
        return Value()
    value, error = numbers[name], numbers.get(f"{name}_stderr")
    if value is None:
        return Value("not finite")
    return Value(show(value) if error is None else f"{value:.4f} ± {error:.4f}", value, mark)
