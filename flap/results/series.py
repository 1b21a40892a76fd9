"""Group the runs of a study into the lines of its plots, and give each line its style.

A study consists of the runs of one or more sweeps. The ratio is the share of the parameters that a
run removes. A target is an upper limit on a size of the pruned model, such as its bytes.

Colours distinguish the choices of the config groups `method` and `metric`. Markers and dashes
distinguish the choices of the config group `structure`.
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
# Colours that colour-blind readers can tell apart, similar to the colours of Okabe and Ito.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD8", "#7A7A7A")
# pairs of a matplotlib marker and a line style
LINES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))


@dataclass(frozen=True)
class Series:
    """A line of a plot: runs that differ only in their ratio or targets, seed and sweep."""

    # the metric, and other settings that distinguish this line from lines with the same metric
    label: str
    structure: str
    rows: DataFrame  # the rows of `Study.results` for the runs of this line
    # A table with a row for each ratio. The columns are the minimum, mean and maximum of each
    # measured number over the runs with different seeds. For runs with a target, the ratio is the
    # share of the parameters that was removed.
    by_ratio: DataFrame
    # matplotlib options: the colour, which depends on the label, and the marker and the dashes,
    # which depend on the structure
    style: dict[str, Any]


def series_of(study: Study) -> list[Series]:
    """Group the runs of a study into the lines of its plots, sorted by label and structure."""
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
