"""The lines of plots: which runs each line has, and how it looks.

The colour stands for method and metric, marker and dashes for the structure.
"""

from dataclasses import dataclass
from typing import Any

from pandas import DataFrame

from flap.results.study import Study

# Colours after Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD8", "#7A7A7A")
LINES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))  # (marker, dashes)
INK = "#24292f"
MUTED = "#6e7781"
RULE = "#d0d7de"
STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "flap",
    "text.parse_math": False,  # a dollar sign in a name begins no formula
}


@dataclass(frozen=True)
class Series:
    """A line of a plot: runs that differ only in their ratio, seed and sweep."""

    label: str  # the metric, and what else tells this line from others of the same metric
    structure: str
    rows: DataFrame  # rows of `Study.results`

    def at_each_ratio(self, column: str) -> DataFrame:
        """Return min, mean and max over the seeds of the finite numbers, a row for each ratio.

        The ratio of runs with a target is the median share that they removed.
        """
        groups = self.rows.groupby("requested")
        ranges = groups[column].agg(["min", "mean", "max"])
        return ranges.set_index(groups.ratio.median()).dropna().sort_index()


def series_of(study: Study) -> list[Series]:
    """Return the series of a study, sorted by label and structure.

    Runs with several targets are one series, as runs with several ratios are.
    """
    without_targets = study.results.options.str.replace(r"(^| )target\.\S+", "", regex=True)
    runs = study.results.assign(options=without_targets.str.strip())

    names = ["metric"]
    if runs.method.nunique(dropna=False) > 1:
        names.insert(0, "method")
    names += [name for name in ("model", "options") if _splits_a_metric(runs, name)]

    labels = []
    for row in runs[names].itertuples(index=False):
        labels.append(" ".join(str(word) for word in row if word))
    groups = runs.groupby([labels, runs.structure.map(str).tolist()])
    return [Series(label, structure, rows) for (label, structure), rows in groups]


def _splits_a_metric(runs: DataFrame, name: str) -> bool:
    """Return whether runs of one method, metric and structure differ in a column."""
    kind = ["method", "metric", "structure"]
    return len(runs[[*kind, name]].drop_duplicates()) > len(runs[kind].drop_duplicates())


def styles(series: list[Series]) -> list[dict[str, Any]]:
    """Return the style of each series, as arguments of matplotlib's `plot`."""
    colours, shapes = palette(series)
    found = []
    for line in series:
        marker, dashes = shapes[line.structure]
        found.append({"color": colours[line.label], "marker": marker, "linestyle": dashes})
    return found


def palette(series: list[Series]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return the colour of each label, and (marker, dashes) of each structure."""
    labels = sorted({line.label for line in series})
    structures = sorted({line.structure for line in series})
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    shapes = {name: LINES[i % len(LINES)] for i, name in enumerate(structures)}
    return colours, shapes
