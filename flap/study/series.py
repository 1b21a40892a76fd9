"""The lines of a plot: which cells each has, and its style (metric = colour, structure = line and marker)."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flap.study.cells import Cell, Study

# after Okabe and Ito: safe for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD8")
STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))


@dataclass(frozen=True)
class Series:
    """A line of a plot: cells that differ only in ratio and seed."""

    metric: str  # with other choices that distinguish series of the same metric and structure
    structure: str
    cells: tuple[Cell, ...]

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
    extra = [name for name in ("model", "method", "options") if _splits_a_metric(study, name)]
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in study.finished:
        words = [cell.metric, *(getattr(cell, name) for name in extra)]
        groups[" ".join(str(word) for word in words if word), str(cell.structure)].append(cell)
    return [Series(*key, tuple(cells)) for key, cells in sorted(groups.items())]


def _splits_a_metric(study: Study, name: str) -> bool:
    """Return whether cells of the same metric and structure differ in the field `name`."""
    pairs = {(cell.metric, cell.structure, getattr(cell, name)) for cell in study.finished}
    return len(pairs) > len({pair[:2] for pair in pairs})


def styles(series: list[Series]) -> list[dict[str, Any]]:
    """Return the style of each series, as arguments of matplotlib's `plot`."""
    colours, shapes = palette(series)
    return [
        {"color": colours[line.metric], "marker": shapes[line.structure][0], "linestyle": shapes[line.structure][1]}
        for line in series
    ]


def palette(series: list[Series]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return the colour of each metric, and (marker, line) of each structure."""
    metrics, structures = sorted({line.metric for line in series}), sorted({line.structure for line in series})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(metrics)}
    return colours, {name: STYLES[i % len(STYLES)] for i, name in enumerate(structures)}
