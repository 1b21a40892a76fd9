"""A study: the runs of one or more sweeps, and a table with a row for each run."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any

from pandas import DataFrame

from flap.config import CUSTOM
from flap.results.configs import flat
from flap.results.number_texts import domain_of, in_order, is_bits_per_byte
from flap.results.run_folder import RunRecord

# The columns that describe a run.
CHOSEN = ("sweep", "model", "method", "metric", "structure", "options", "ratio", "seed")
COLUMNS = [
    "cell",
    "state",
    *CHOSEN,
    "realised_ratio",
    "parameters_after",
    "seconds_total",
    "statistics_cache",
    "calibration_domain",
    "error",
    "requested",
    "parameters_before",
]
UNSHOWN = ["requested", "parameters_before"]  # columns of the frame that study.csv does not have


@dataclass(frozen=True)
class Study:
    """The runs of one or more sweeps.

    They are sorted by ratio, then by the first number; runs without a result come last.
    """

    folder: Path  # where the files of the study are written
    commands: list[str]  # the commands that started the sweeps, as far as they are recorded
    runs: list[RunRecord]

    @property
    def title(self) -> str:
        """The models, and the choices that differ between the runs."""
        title = f"Pruning {', '.join(self.values('model')) or self.folder.name}"
        different = [name for name in self.different if name not in ("sweep", "model")]
        return f"{title}: {' × '.join(different)}" if different else title

    @property
    def different(self) -> list[str]:
        """The choices that tell runs apart."""
        names = [name for name in CHOSEN if len(self.values(name)) > 1]
        if "method" in names and not self._method_tells_apart:
            names.remove("method")
        return names

    @property
    def _method_tells_apart(self) -> bool:
        """Whether runs have several presets as methods, or differ in nothing but the method.

        With another metric, a run of flap has the method "custom". The column of the metric shows
        this already.
        """
        named = [method for method in self.values("method") if method != CUSTOM]
        others = [name for name in CHOSEN if name != "method"]
        of_equal_runs = self.frame.groupby(others, dropna=False).method.nunique()
        return len(named) > 1 or bool((of_equal_runs > 1).any())

    @cached_property
    def frame(self) -> DataFrame:
        """A row for each run with its choices, sizes and numbers.

        None stands for a number that was not measured, "nan" for one that is not finite.
        """
        rows = [_row(run) for run in self.runs]
        numbers = [name for name in dict.fromkeys(chain(*rows)) if "/" in name]
        frame = DataFrame(rows, columns=COLUMNS + numbers, dtype=object).replace(inf, "nan")
        return frame.where(frame.notna(), None)

    @cached_property
    def records(self) -> DataFrame:
        """The part of the frame that study.csv has."""
        sweep = [] if self.values("sweep") else ["sweep"]
        return self.frame.drop(columns=UNSHOWN + sweep)

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
    def finished(self) -> list[RunRecord]:
        """The finished runs."""
        return self.of(self.results)

    @cached_property
    def dense(self) -> DataFrame:
        """The numbers of the dense models, as one row of `results` for each.

        A dense model has several rows if it was measured in several ways. Of the runs that share
        its numbers, the first one gives the row. A run that was measured in only some of the ways
        of another run gives none.
        """
        first: dict[frozenset[str], int] = {}
        for i in self.results.index:
            first.setdefault(self.runs[i].dense_identity, i)
        rows = [i for ways, i in first.items() if not any(ways < other for other in first)]
        return self.results.loc[rows]

    @property
    def measured(self) -> list[str]:
        """The names of the pruned models' numbers without standard errors, sorted.

        If some runs have trimmed the vocabulary, bits per byte come first: they compare all runs.
        """
        names = in_order(chain(*(run.report.evaluation["pruned"] for run in self.runs)), {})
        if self.trimmed:
            names.sort(key=lambda name: not is_bits_per_byte(name))
        return names

    @property
    def trimmed(self) -> bool:
        """Whether some runs have trimmed the vocabulary, and so have tokenizers of their own."""
        return any(run.report.vocabulary for run in self.runs)

    def of(self, rows: DataFrame) -> list[RunRecord]:
        """Return the runs that belong to these rows of the frame."""
        return [self.runs[i] for i in rows.index]

    def domain(self, name: str) -> str:
        """Return the domain of a number's text.

        It is empty if the runs disagree, as they do with different calibration texts.
        """
        return _agreed(domain_of(name, run.report.domains) for run in self.finished)

    def better(self, name: str) -> str:
        """Return whether "lower" or "higher" values of a number are better.

        The text is empty if no run says, or if they disagree.
        """
        return _agreed(run.report.better.get(name, "") for run in self.runs)

    def dense_name(self, model: str | None) -> str:
        """Return the name of a dense model in plots and on the page."""
        return f"dense {model}" if len(self.values("model")) > 1 else "dense"

    def values(self, name: str) -> list[Any]:
        """Return the distinct values of a column, sorted; unknown values are left out."""
        return sorted({*self.frame[name]} - {None, ""})


def _row(run: RunRecord) -> dict[str, Any]:
    """Return the row of a run by the columns of the frame. Other keys are not shown."""
    report = run.report
    numbers = {
        "dense": report.evaluation["dense"],
        "pruned": report.evaluation["pruned"],
        "difference_stderr": report.difference_stderr,
    }
    measured = in_order(report.evaluation["pruned"], {})
    inside = [name for name in measured if domain_of(name, report.domains) == "calibration"]
    facts = {
        "cell": run.folder,
        "realised_ratio": report.ratio.get("realised_decoder"),
        "parameters_before": report.parameters.get("total_before"),
        "parameters_after": report.parameters.get("total_after"),
        "seconds_total": report.seconds.get("total"),
        "statistics_cache": report.statistics_cache,
        "calibration_domain": "; ".join(inside),
    }
    return vars(run) | facts | flat(numbers, separator="/")


def _agreed(values: Iterable[str]) -> str:
    """Return the only value that is not empty, or an empty text if there are several."""
    distinct = {*values} - {""}
    return distinct.pop() if len(distinct) == 1 else ""
