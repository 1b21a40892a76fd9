"""The model of results: the runs of one sweep or several, and a table with a row for each run."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from pandas import DataFrame

from flap.results.configs import CHOICES
from flap.results.number_texts import is_bits_per_byte, is_efficiency, is_perplexity
from flap.results.run_folder import RunRecord

CHOICE_COLUMNS = ("cell", "state", "sweep", "model", "method", "metric", "structure", "options")
SIZE_COLUMNS = ("ratio", "realised_ratio", "seed", "parameters_after")
LAST_COLUMNS = ("seconds_total", "statistics_cache", "calibration_domain", "error")
UNSHOWN = ("requested", "parameters_before")  # columns of the frame that study.csv does not have


@dataclass(frozen=True)
class Study:
    """The runs of one or more sweeps.

    They are sorted by ratio, then by the first number; runs without a result come last.
    """

    folder: Path  # where the files of the study are written
    commands: tuple[str, ...]  # the commands that started the sweeps, as far as they are recorded
    runs: tuple[RunRecord, ...]

    @cached_property
    def frame(self) -> DataFrame:
        """A row for each run with its choices, sizes and numbers.

        None stands for a number that was not measured, "nan" for one that is not finite.
        """
        rows = [_row(run) for run in self.runs]
        columns = [*CHOICE_COLUMNS, *SIZE_COLUMNS]
        for section in ("dense", "pruned", "difference_stderr"):
            names = (name for row in rows for name in row if name.startswith(f"{section}/"))
            columns += dict.fromkeys(names)
        columns += [*LAST_COLUMNS, *UNSHOWN]

        values = [[row.get(name) for name in columns] for row in rows]
        return DataFrame(values, columns=columns, dtype=object)

    @cached_property
    def records(self) -> DataFrame:
        """The part of the frame that study.csv has."""
        unshown = [*UNSHOWN]
        if not self.values("sweep"):
            unshown.append("sweep")
        return self.frame.drop(columns=unshown)

    @cached_property
    def results(self) -> DataFrame:
        """The rows of the finished runs, with numbers as floats.

        nan stands for numbers that were not measured or are not finite.
        """
        of_numbers = ("dense/", "pruned/", "ratio", "parameters_")
        numbers = [name for name in self.frame if name.startswith(of_numbers)]
        finished = self.frame[self.frame.state == "finished"]
        return finished.astype(dict.fromkeys(numbers, float))

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The finished runs."""
        return self.of(self.results)

    @cached_property
    def dense(self) -> DataFrame:
        """One row of `results` for each dense model and way to measure it.

        Runs with the same dense model and ways share its numbers; the first of them stands here. A
        run that was measured in fewer ways than another adds nothing.
        """
        first: dict[frozenset[str], int] = {}
        for i, run in enumerate(self.runs):
            if run.state == "finished":
                first.setdefault(run.dense_identity, i)
        rows = [i for ways, i in first.items() if not any(ways < other for other in first)]
        return self.results.loc[rows]

    @property
    def measured(self) -> list[str]:
        """The names of the pruned models' numbers without standard errors.

        Perplexities come first, then bits per byte, and efficiency last.
        """
        names: dict[str, None] = {}
        for run in self.runs:
            names |= dict.fromkeys(n for n in run.numbers("pruned") if not n.endswith("_stderr"))

        def key(name: str) -> tuple[bool, bool, bool]:
            return not is_perplexity(name), not is_bits_per_byte(name), is_efficiency(name)

        return sorted(names, key=key)

    def of(self, rows: DataFrame) -> tuple[RunRecord, ...]:
        """Return the runs of rows of the frame."""
        return tuple(self.runs[i] for i in rows.index)

    def domain(self, name: str) -> str:
        """Return the domain of a number's text.

        It is empty if the runs disagree, as they do with different calibration texts.
        """
        return _agreed(run.domain(name) for run in self.finished)

    def better(self, name: str) -> str:
        """Return which values of a number are better, "lower" or "higher".

        The text is empty if no run says, or if they disagree.
        """
        return _agreed(run.value("better", name) or "" for run in self.runs)

    def values(self, name: str) -> list[Any]:
        """Return the distinct values of a column, sorted; unknown values are left out."""
        return sorted({*self.frame[name]} - {None, ""})


def _row(run: RunRecord) -> dict[str, Any]:
    """Return the values of a run by the columns of the frame."""
    row: dict[str, Any] = {}
    for which in ("dense", "pruned"):
        for name, value in run.numbers(which).items():
            row[f"{which}/{name}"] = value if isfinite(value) else "nan"
    for name, error in run.report.get("difference_stderr", {}).items():
        row[f"difference_stderr/{name}"] = error
    for name in ("state", "sweep", *CHOICES, "options", "error"):
        row[name] = getattr(run, name)

    of_calibration = []
    for name in run.numbers("pruned"):
        if not name.endswith("_stderr") and run.domain(name) == "calibration":
            of_calibration.append(name)
    return row | {
        "cell": run.folder,
        "realised_ratio": run.value("ratio", "realised_decoder"),
        "requested": run.requested,
        "parameters_before": run.value("parameters", "total_before"),
        "parameters_after": run.value("parameters", "total_after"),
        "seconds_total": run.value("seconds", "total"),
        "statistics_cache": run.report.get("statistics_cache"),
        "calibration_domain": "; ".join(of_calibration),
    }


def _agreed(values: Iterable[str]) -> str:
    """Return the only value that is not empty; empty if there is none, or several."""
    distinct = {*values} - {""}
    return distinct.pop() if len(distinct) == 1 else ""
