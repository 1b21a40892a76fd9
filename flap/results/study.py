"""The model of results: the runs of one sweep or several, and a table of all that is known of them, a row for each."""

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
UNSHOWN = ("requested", "parameters_before")  # of the frame alone, not of study.csv


@dataclass(frozen=True)
class Study:
    """The runs of one or more sweeps, sorted by ratio, then by the first number; those without a result are last."""

    folder: Path  # where its files are written
    commands: tuple[str, ...]  # that started the sweeps, of those with a multirun.yaml
    runs: tuple[RunRecord, ...]

    @cached_property
    def frame(self) -> DataFrame:
        """A row for each run, in their order: choices, sizes and numbers; None = not measured, "nan" = not finite."""
        rows = [_row(run) for run in self.runs]
        numbers = [dict.fromkeys(name for row in rows for name in row if name.startswith(f"{which}/"))
                   for which in ("dense", "pruned", "difference_stderr")]  # fmt: skip
        columns = [
            *CHOICE_COLUMNS,
            *SIZE_COLUMNS,
            *numbers[0],
            *numbers[1],
            *numbers[2],
            *LAST_COLUMNS,
            *UNSHOWN,
        ]
        return DataFrame(
            [[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object
        )

    @cached_property
    def records(self) -> DataFrame:
        """What study.csv has of the frame."""
        return self.frame.drop(columns=[*UNSHOWN] if self.values("sweep") else [*UNSHOWN, "sweep"])

    @cached_property
    def results(self) -> DataFrame:
        """The rows of the finished runs, with numbers as floats: nan where they were not measured or are not finite."""
        numbers = [
            name
            for name in self.frame
            if name.startswith(("dense/", "pruned/", "ratio", "parameters_"))
        ]
        return self.frame[self.frame.state == "finished"].astype(dict.fromkeys(numbers, float))

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The finished runs."""
        return self.of(self.results)

    @cached_property
    def dense(self) -> DataFrame:
        """One row of `results` for each dense model and way to measure it, whose runs share its numbers."""
        rows = {
            run.dense_identity: i
            for i, run in reversed(list(enumerate(self.runs)))
            if run.state == "finished"
        }
        # one that was measured in fewer ways than another adds nothing to it
        return self.results.loc[
            [i for way, i in reversed(rows.items()) if not any(way < other for other in rows)]
        ]

    @property
    def measured(self) -> list[str]:
        """The names of the pruned models' numbers, no standard errors; perplexities first, efficiency last."""
        names = dict.fromkeys(
            name
            for run in self.runs
            for name in run.numbers("pruned")
            if not name.endswith("_stderr")
        )
        return sorted(
            names,
            key=lambda name: (
                not is_perplexity(name),
                not is_bits_per_byte(name),
                is_efficiency(name),
            ),
        )

    def of(self, rows: DataFrame) -> tuple[RunRecord, ...]:
        """Return the runs of rows of the frame."""
        return tuple(self.runs[i] for i in rows.index)

    def domain(self, name: str) -> str:
        """Return the domain of a number's text; empty if the runs disagree, as with different calibration texts."""
        return _agreed(run.domain(name) for run in self.finished)

    def better(self, name: str) -> str:
        """Return which values of a number are better, "lower" or "higher"; empty if no run says, or they disagree."""
        return _agreed(run.value("better", name) or "" for run in self.runs)

    def values(self, name: str) -> list[Any]:
        """Return the distinct values of a column, sorted; unknown values are left out."""
        return sorted({*self.frame[name]} - {None, ""})


def _row(run: RunRecord) -> dict[str, Any]:
    """Return what the frame has of a run, by column."""
    numbers = {
        f"{which}/{name}": value if isfinite(value) else "nan"
        for which in ("dense", "pruned")
        for name, value in run.numbers(which).items()
    }
    numbers |= {
        f"difference_stderr/{name}": error
        for name, error in run.report.get("difference_stderr", {}).items()
    }
    names = (name for name in run.numbers("pruned") if not name.endswith("_stderr"))
    return numbers | {name: getattr(run, name) for name in ("state", "sweep", *CHOICES, "options", "error")} | {
        "cell": run.folder,
        "realised_ratio": run.value("ratio", "realised_decoder"),
        "requested": run.requested,
        "parameters_before": run.value("parameters", "total_before"),
        "parameters_after": run.value("parameters", "total_after"),
        "seconds_total": run.value("seconds", "total"),
        "statistics_cache": run.report.get("statistics_cache"),
        "calibration_domain": "; ".join(name for name in names if run.domain(name) == "calibration"),
    }  # fmt: skip


def _agreed(values: Iterable[str]) -> str:
    """Return the only value that is not empty; empty if there is none, or several."""
    distinct = {*values} - {""}
    return distinct.pop() if len(distinct) == 1 else ""
