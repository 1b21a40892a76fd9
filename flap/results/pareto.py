"""Panels of quality, a perplexity or an accuracy, over what a model costs: parameters, bytes, speed; its Pareto front.

On the front are the models, dense ones included, for which no other model is both cheaper and better, or as good.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

from matplotlib.ticker import EngFormatter

from flap.reporting.numbers import is_perplexity
from flap.results.series import Series, styles
from flap.results.study import Cell, Study


@dataclass(frozen=True)
class Cost:
    """What a model costs; of speed, higher is better. value: the number of a cell's model, "dense" or "pruned"."""

    name: str
    label: str
    value: Callable[[Cell, str], float | None]
    lower_is_better: bool = True

    def known(self, study: Study) -> bool:
        """Return whether the study has the number of a pruned model."""
        return any(self.value(cell, "pruned") is not None for cell in study.finished)


def _parameters(cell: Cell, which: str) -> float | None:
    parameters: int | None = cell.value("parameters", "total_before" if which == "dense" else "total_after")
    return parameters


def _efficiency(name: str) -> Callable[[Cell, str], float | None]:
    return lambda cell, which: cell.numbers(which).get(f"efficiency/{name}")


COSTS = (
    Cost("parameters", "parameters", _parameters),
    Cost("bytes", "bytes of the checkpoint", _efficiency("checkpoint_bytes")),
    Cost("speed", "decode tokens/s", _efficiency("decode_tokens_per_second"), lower_is_better=False),
)


class Point(NamedTuple):
    """A model in a panel. series: its number; None: a dense model."""

    cost: float
    quality: float
    label: str
    series: int | None


def points(study: Study, series: list[Series], name: str, cost: Cost) -> list[Point]:
    """Return the points of a number over a cost: each series at each ratio, mean of the seeds, and the dense models."""
    return [*_pruned(series, name, cost), *_dense(study, name, cost)]


def _pruned(series: list[Series], name: str, cost: Cost) -> Iterator[Point]:
    for i, line in enumerate(series):
        quality = line.at_each_ratio(lambda cell: cell.numbers("pruned").get(name))
        costs = line.at_each_ratio(lambda cell: cost.value(cell, "pruned"))
        for ratio in (ratio for ratio in quality if ratio in costs):
            yield Point(mean(costs[ratio]), mean(quality[ratio]), f"{line.metric} {line.structure} {ratio:g}", i)


def _dense(study: Study, name: str, cost: Cost) -> Iterator[Point]:
    cells = study.dense()
    for cell in cells:
        x, y = cost.value(cell, "dense"), cell.numbers("dense").get(name)
        if x is not None and y is not None:
            yield Point(x, y, "dense" if len({cell.model for cell in cells}) == 1 else f"dense {cell.model}", None)


def front(points: list[Point], cost_is_lower: bool, quality_is_lower: bool) -> list[Point]:
    """Return the points of the Pareto front, the cheapest first."""
    signs = 1 if cost_is_lower else -1, 1 if quality_is_lower else -1
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (signs[0] * point.cost, signs[1] * point.quality)):
        if not found or signs[1] * point.quality < signs[1] * found[-1].quality:
            found.append(point)
    return found


def fronts(study: Study, series: list[Series], names: list[str], cost: Cost) -> str:
    """Return the front of each number in words, for the caption."""
    return " ".join(f"On the front of {name}: {', '.join(_labels(study, series, name, cost))}." for name in names)


def _labels(study: Study, series: list[Series], name: str, cost: Cost) -> list[str]:
    return [
        point.label for point in front(points(study, series, name, cost), cost.lower_is_better, is_perplexity(name))
    ]


def quality_over(cost: Cost, ink: str, muted: str) -> Callable[[Any, Study, str, list[Series]], None]:
    """Return the function that draws a number over a cost; the dense models are crosses."""

    def panel(axes: Any, study: Study, name: str, series: list[Series]) -> None:
        shown = points(study, series, name, cost)
        best = front(shown, cost.lower_is_better, is_perplexity(name))
        between = "steps-post" if cost.lower_is_better else "steps-pre"
        ordered = sorted((point.cost, point.quality) for point in best)
        axes.plot(*zip(*ordered, strict=True), color=muted, alpha=0.35, linewidth=5, drawstyle=between, zorder=1)
        for i, style in enumerate(styles(series)):
            line = [(point.cost, point.quality) for point in shown if point.series == i]
            axes.plot(*zip(*line, strict=True) if line else ([], []), **style | {"linewidth": 0.8})
        for point in (point for point in shown if point.series is None):
            axes.plot(point.cost, point.quality, marker="x", markersize=8, markeredgewidth=2, color=ink)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    return panel
