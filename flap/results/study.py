"""A study: the runs of one or more sweeps, and a table with a row for each run.

A number is a measured result, such as a perplexity or an accuracy.
"""

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

# The columns of a study's table that contain the sweep and the settings of each run.
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
# columns of `Study.frame` that are left out of study.csv
UNSHOWN = ["requested", "parameters_before"]


@dataclass(frozen=True)
class Study:
    """The runs of one or more sweeps.

    Runs are sorted by ratio, which is the share of the parameters that is removed. Runs with the
    same ratio are sorted by the first number in `measured`. Runs that have not finished come last.
    """

    folder: Path  # the folder into which the files of the study are written
    commands: list[str]  # commands that started the sweeps, as far as Hydra has recorded them
    runs: list[RunRecord]

    @property
    def title(self) -> str:
        """The title of the page: the names of the models, and the columns in `different`."""
        title = f"Pruning {', '.join(self.values('model')) or self.folder.name}"
        different = [name for name in self.different if name not in ("sweep", "model")]
        return f"{title}: {' × '.join(different)}" if different else title

    @property
    def different(self) -> list[str]:
        """The columns of CHOSEN whose values differ between the runs.

        The column "method" is left out if it is not needed to tell the runs apart.
        """
        names = [name for name in CHOSEN if len(self.values(name)) > 1]
        if "method" in names and not self._method_tells_apart:
            names.remove("method")
        return names

    @property
    def _method_tells_apart(self) -> bool:
        """Whether the column "method" is needed to tell the runs apart.

        A method is a preset of metric, structure, compensation and calibration. The method of a run
        that changes its preset is "custom". The column is needed if the runs use several presets,
        or if some runs differ only in their method. It is not needed if the runs use one preset and
        several metrics, because the column "metric" already tells these runs apart.
        """
        named = [method for method in self.values("method") if method != CUSTOM]
        others = [name for name in CHOSEN if name != "method"]
        of_equal_runs = self.frame.groupby(others, dropna=False).method.nunique()
        return len(named) > 1 or bool((of_equal_runs > 1).any())

    @cached_property
    def frame(self) -> DataFrame:
        """A table with a row for each run: its settings, its sizes and its measured numbers.

        A number that was not measured is None. Infinity is replaced by the text "nan".
        """
        rows = [_row(run) for run in self.runs]
        numbers = [name for name in dict.fromkeys(chain(*rows)) if "/" in name]
        frame = DataFrame(rows, columns=COLUMNS + numbers, dtype=object).replace(inf, "nan")
        return frame.where(frame.notna(), None)

    @cached_property
    def records(self) -> DataFrame:
        """The columns of `frame` that are written to study.csv."""
        sweep = [] if self.values("sweep") else ["sweep"]
        return self.frame.drop(columns=UNSHOWN + sweep)

    @cached_property
    def results(self) -> DataFrame:
        """The rows of `frame` for the finished runs, with numbers as floats.

        Numbers that were not measured, or are not finite, are nan.
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
        """The rows of `results` from which the page and the plots take the dense models' numbers.

        All runs with the same model and the same evaluations have measured the same numbers of the
        dense model, so only the first of these runs has a row here. A dense model has several rows
        if runs have evaluated it with different options, such as window lengths. A run has no row
        if another run has done the same evaluations and additional ones.
        """
        first: dict[frozenset[str], int] = {}
        for i in self.results.index:
            first.setdefault(self.runs[i].dense_identity, i)
        rows = [i for ways, i in first.items() if not any(ways < other for other in first)]
        return self.results.loc[rows]

    @property
    def measured(self) -> list[str]:
        """The sorted names of all numbers that were measured on pruned models.

        Standard errors are left out. If some runs have trimmed the vocabulary, bits per byte come
        first, because they can be compared between different tokenizers.
        """
        names = in_order(chain(*(run.report.evaluation["pruned"] for run in self.runs)), {})
        if self.trimmed:
            names.sort(key=lambda name: not is_bits_per_byte(name))
        return names

    @property
    def trimmed(self) -> bool:
        """Whether some runs have trimmed the vocabulary, so that the tokenizers differ."""
        return any(run.report.vocabulary for run in self.runs)

    def of(self, rows: DataFrame) -> list[RunRecord]:
        """Return the runs to which these rows of `frame` or `results` belong."""
        return [self.runs[i] for i in rows.index]

    def domain(self, name: str) -> str:
        """Return the domain of the text on which a number is measured: "calibration" or "other".

        The domain is "calibration" if the runs also use the data set or documents of this text for
        another purpose, such as calibration. The result is empty if the domain is unknown, or if
        the text has different domains in different runs.
        """
        return _agreed(domain_of(name, run.report.domains) for run in self.finished)

    def better(self, name: str) -> str:
        """Return whether "lower" or "higher" values of a number are better.

        The result is empty if no run has recorded this, or if two runs have recorded different
        answers.
        """
        return _agreed(run.report.better.get(name, "") for run in self.runs)

    def dense_name(self, model: str | None) -> str:
        """Return the name by which plots and the page show a dense model."""
        return f"dense {model}" if len(self.values("model")) > 1 else "dense"

    def values(self, name: str) -> list[Any]:
        """Return the distinct values of a column of `frame`, sorted. Leave out missing values."""
        return sorted({*self.frame[name]} - {None, ""})


def _row(run: RunRecord) -> dict[str, Any]:
    """Return the row of a run in `Study.frame`. The frame ignores keys that are not its columns."""
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
    """Return the value on which all non-empty values agree; "" if they differ or all are empty."""
    distinct = {*values} - {""}
    return distinct.pop() if len(distinct) == 1 else ""
