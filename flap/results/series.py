"""The lines of a plot: which cells each has, and its style (method, metric = colour, structure = line and marker)."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flap.results.study import Cell, Study

# after Okabe and Ito: safe for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD8", "#7A7A7A")
# of metrics, in every study; a method has the colour of its metric (flap WIFV, flap_plus OBS, wanda_sp wanda)
OWN = dict(zip(("WIFV", "OBS", "IFV", "wanda", "WIFN", "magnitude", "random"), COLOURS, strict=True))
STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))


@dataclass(frozen=True)
class Series:
    """A line of a plot: cells that differ only in ratio and seed, and in the sweep that they are of."""

    metric: str  # with the method where that varies, and other choices that tell it from the same metric and structure
    structure: str
    cells: tuple[Cell, ...]

    @property
    def ratios(self) -> list[float]:
        """Return the distinct ratios, ascending."""
        return sorted({cell.ratio for cell in self.cells if cell.ratio is not None})

    def at_each_ratio(self, number: Callable[[Cell], float | None]) -> dict[float, list[float]]:
        """Return the finite numbers of all seeds, by ratio."""
        values: dict[float, list[float]] = defaultdict(list)
        for cell in self.cells:
            value = number(cell)
            if value is not None and cell.ratio is not None:
                values[cell.ratio].append(value)
        return dict(sorted(values.items()))


def series_of(study: Study) -> list[Series]:
    """Return the series of a study, sorted by metric and structure."""
    methods = {cell.method for cell in study.finished}
    names = ["method"] if len(methods) > 1 else []
    names += ["metric", *(name for name in ("model", "options") if _splits_a_metric(study, name))]
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in study.finished:
        words = [getattr(cell, name) for name in names]
        groups[" ".join(str(word) for word in words if word), str(cell.structure)].append(cell)
    return [Series(*key, tuple(cells)) for key, cells in sorted(groups.items())]


def _splits_a_metric(study: Study, name: str) -> bool:
    """Return whether cells of the same method, metric and structure differ in the field `name`."""
    kinds = {(cell.method, cell.metric, cell.structure, getattr(cell, name)) for cell in study.finished}
    return len(kinds) > len({kind[:3] for kind in kinds})


def styles(series: list[Series]) -> list[dict[str, Any]]:
    """Return the style of each series, as arguments of matplotlib's `plot`."""
    colours, shapes = palette(series)
    return [
        {"color": colours[line.metric], "marker": shapes[line.structure][0], "linestyle": shapes[line.structure][1]}
        for line in series
    ]


def palette(series: list[Series]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return the colour of each metric, with what tells it from others, and (marker, line) of each structure.

    A metric has its own colour in every study. Where several lines are of one metric, the first has its colour (custom
    methods come last), and the others have colours of metrics that the study does not have.
    """
    lines = sorted(series, key=lambda line: (line.cells[0].method == "custom", line.metric))
    own = {line.cells[0].metric: line.metric for line in reversed(lines) if line.cells[0].metric in OWN}
    colours = {label: OWN[str(metric)] for metric, label in own.items()}
    free = [colour for colour in COLOURS if colour not in colours.values()] or COLOURS
    others = [label for label in dict.fromkeys(line.metric for line in lines) if label not in colours]
    colours |= {label: free[i % len(free)] for i, label in enumerate(others)}
    structures = sorted({line.structure for line in series})
    return dict(sorted(colours.items())), {name: STYLES[i % len(STYLES)] for i, name in enumerate(structures)}
