"""The lines of plots: which runs each line has, and how it looks.

The colour stands for method and metric, marker and dashes for the structure.
"""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import rc_params_from_file
from pandas import DataFrame

from flap.results.study import Study

STYLE = rc_params_from_file(Path(__file__).with_name("plots.mplstyle"), use_default_template=False)
INK = STYLE["text.color"]
MUTED = STYLE["axes.edgecolor"]
RULE = STYLE["grid.color"]
# Colours after Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD8", "#7A7A7A")
LINES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))  # (marker, dashes)


@dataclass(frozen=True)
class Series:
    """A line of a plot: runs that differ only in their ratio, seed and sweep."""

    label: str  # the metric, and what else tells this line from others of the same metric
    structure: str
    rows: DataFrame  # rows of `Study.results`
    # min, mean and max over the seeds of each number, by ratio. Runs with a target have the
    # ratio that they removed.
    by_ratio: DataFrame
    style: dict[str, Any]  # the colour of the label and the shape of the structure


def series_of(study: Study) -> list[Series]:
    """Return the series of a study, sorted by label and structure.

    Runs with several targets are one series, as runs with several ratios are.
    """
    without_targets = study.results.options.str.replace(r"(^| )target\.\S+", "", regex=True)
    runs = study.results.assign(options=without_targets.str.strip())

    names = []
    for name in ("method", "metric", "model", "options"):
        varies = runs[name].nunique(dropna=False) > 1
        if name == "method":
            varies = name in study.different
        if varies or name == "metric":
            names.append(name)
    labels = []
    for row in runs[names].itertuples(index=False):
        words = filter(None, row)
        labels.append(" ".join(map(str, words)))
    structures = list(map(str, runs.structure))

    colours = dict(zip(sorted({*labels}), cycle(COLOURS), strict=False))
    shapes = dict(zip(sorted({*structures}), cycle(LINES), strict=False))
    series = []
    for (label, structure), rows in runs.groupby([labels, structures]):
        marker, dashes = shapes[structure]
        style = {"color": colours[label], "marker": marker, "linestyle": dashes}
        series.append(Series(label, structure, rows, _by_ratio(rows), style))
    return series


def _by_ratio(rows: DataFrame) -> DataFrame:
    seeds = rows.select_dtypes(float).groupby(rows.requested).agg(["min", "mean", "max"])
    return seeds.set_index(seeds["ratio", "mean"]).sort_index()
