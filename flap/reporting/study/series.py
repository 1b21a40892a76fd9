"""Cells that belong on one line of a plot, and how the line looks: metric = colour, structure = line and marker."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flap.reporting.study.cells import Cell, Study

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD8")  # after Okabe and Ito: colour-blind safe
STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))


@dataclass(frozen=True)
class Series:
    """Cells that differ in ratio and seed alone."""

    metric: str  # and what else tells it from another series of the same metric and structure
    structure: str
    cells: tuple[Cell, ...]

    def at_each_ratio(self, number: Callable[[Cell], float | None]) -> dict[float, list[float]]:
        """The finite numbers of all seeds, by ratio."""
        found: dict[float, list[float]] = defaultdict(list)
        for cell in self.cells:
            value = number(cell)
            if value is not None and cell.ratio is not None:
                found[cell.ratio].append(value)
        return dict(sorted(found.items()))


def series_of(study: Study) -> list[Series]:
    """In the order of metric and structure."""
    extra = [name for name in ("model", "method", "options") if _splits_a_metric(study, name)]
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in study.finished:
        words = [cell.metric, *(getattr(cell, name) for name in extra)]
        groups[" ".join(str(word) for word in words if word), str(cell.structure)].append(cell)
    return [Series(*key, tuple(cells)) for key, cells in sorted(groups.items())]


def _splits_a_metric(study: Study, name: str) -> bool:
    pairs = {(cell.metric, cell.structure, getattr(cell, name)) for cell in study.finished}
    return len(pairs) > len({pair[:2] for pair in pairs})


def styles(series: list[Series]) -> list[dict[str, Any]]:
    colours, shapes = palette(series)
    return [
        {"color": colours[one.metric], "marker": shapes[one.structure][0], "linestyle": shapes[one.structure][1]}
        for one in series
    ]


def palette(series: list[Series]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Colour of each metric, (marker, line) of each structure."""
    metrics, structures = sorted({one.metric for one in series}), sorted({one.structure for one in series})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(metrics)}
    return colours, {name: STYLES[i % len(STYLES)] for i, name in enumerate(structures)}
