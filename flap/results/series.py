"""The lines of plots: which runs each has, and how it looks (method, metric = colour, structure = line and marker)."""

from dataclasses import dataclass
from typing import Any

from pandas import DataFrame

from flap.results.study import Study

# after Okabe and Ito: safe for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD8", "#7A7A7A")
LINES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))  # (marker, dashes)
INK = "#24292f"
MUTED = "#6e7781"
RULE = "#d0d7de"
STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "font.size": 9.5,
    "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False, "lines.markersize": 5,
    "svg.fonttype": "none", "svg.hashsalt": "flap",
    "text.parse_math": False,  # a dollar sign in a name begins no formula
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line of a plot: runs that differ only in ratio and seed, and in the sweep that they are of."""

    label: str  # the metric, with the method where that varies, and other choices that tell it from the same metric
    structure: str
    rows: DataFrame  # of `Study.results`

    def at_each_ratio(self, column: str) -> DataFrame:
        """Return min, mean and max of the finite numbers of all seeds, a row for each ratio.

        That of a target is the median of what its runs removed.
        """
        places = self.rows.groupby("requested")
        ranges = places[column].agg(["min", "mean", "max"]).set_index(places.ratio.median())
        return ranges.dropna().sort_index()


def series_of(study: Study) -> list[Series]:
    """Return the series of a study, sorted by label and structure; runs of several targets are one, as of ratios."""
    options = study.results.options.str.replace(r"(^| )target\.\S+", "", regex=True).str.strip()
    runs = study.results.assign(options=options)
    names = ["method"] if runs.method.nunique(dropna=False) > 1 else []
    names += ["metric", *(name for name in ("model", "options") if _splits_a_metric(runs, name))]
    labels = [
        " ".join(str(word) for word in row if word) for row in runs[names].itertuples(index=False)
    ]
    groups = runs.groupby([labels, runs.structure.map(str).tolist()])
    return [Series(label, structure, rows) for (label, structure), rows in groups]


def _splits_a_metric(runs: DataFrame, name: str) -> bool:
    kind = ["method", "metric", "structure"]
    return len(runs[[*kind, name]].drop_duplicates()) > len(runs[kind].drop_duplicates())


def styles(series: list[Series]) -> list[dict[str, Any]]:
    """Return the style of each series, as arguments of matplotlib's `plot`."""
    colours, shapes = palette(series)
    return [
        {
            "color": colours[line.label],
            "marker": shapes[line.structure][0],
            "linestyle": shapes[line.structure][1],
        }
        for line in series
    ]


def palette(series: list[Series]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return the colour of each label, and (marker, line) of each structure."""
    labels, structures = (
        sorted({getattr(line, name) for line in series}) for name in ("label", "structure")
    )
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    return colours, {name: LINES[i % len(LINES)] for i, name in enumerate(structures)}
