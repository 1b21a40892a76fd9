"""Panels of quality, bits per byte or an accuracy, over what a model costs: parameters, bytes, speed; its Pareto front.

On the front are the models, dense ones included, for which no other model is both cheaper and better, or as good.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.ticker import EngFormatter
from pandas import DataFrame

from flap.results.number_texts import is_of_text
from flap.results.series import INK, MUTED, Series, styles
from flap.results.study import Study


class CostAxis(NamedTuple):
    """What a model costs; of speed, higher is better. dense, pruned: the columns of `Study.results` that have it."""

    name: str
    label: str
    dense: str
    pruned: str
    lower_is_better: bool = True

    def measured(self, study: Study) -> bool:
        """Return whether the study has the number of a pruned model."""
        return self.pruned in study.results and bool(study.results[self.pruned].notna().any())


BYTES, SPEED = "efficiency/checkpoint_bytes", "efficiency/decode_tokens_per_second"
COSTS = (
    CostAxis("parameters", "parameters", "parameters_before", "parameters_after"),
    CostAxis("bytes", "bytes of the checkpoint", f"dense/{BYTES}", f"pruned/{BYTES}"),
    CostAxis("speed", "decode tokens/s (ratio × dense median)", f"dense/{SPEED}", f"pruned/{SPEED}", False),
)


class Point(NamedTuple):
    """A model in a panel. series: its number; None: a dense model."""

    cost: float
    quality: float
    label: str
    series: int | None


def points(study: Study, series: list[Series], name: str, cost: CostAxis) -> list[Point]:
    """Return the points of a number over a cost: each series at each ratio, mean of the seeds, and the dense models."""
    numbers = ["ratio", cost.pruned, f"pruned/{name}"]
    results = _comparable(study)
    rows = [results.loc[line.rows.index] for line in series]
    means = [one.groupby("requested")[numbers].mean().dropna().sort_values("ratio") for one in rows]
    pruned = [
        Point(x, y, f"{line.label} {line.structure} {ratio:g}", i)
        for i, line in enumerate(series)
        for ratio, x, y in means[i].itertuples(index=False)
    ]
    dense = study.dense.reindex(columns=["model", cost.dense, f"dense/{name}"])
    single = dense.model.nunique(dropna=False) == 1
    measured = dense[dense.notna().iloc[:, 1:].all(axis=1)].itertuples(index=False)
    return pruned + [Point(x, y, "dense" if single else f"dense {model}", None) for model, x, y in measured]


def _comparable(study: Study) -> DataFrame:
    """Return the results with speeds of one moment: that of a pruned model is the dense median times its own ratio."""
    timed, pruned = study.timed, f"pruned/{SPEED}"
    if f"{pruned}_ratio" not in timed:
        return timed
    return timed.assign(**{pruned: (timed[f"{pruned}_ratio"] * timed[f"dense/{SPEED}"]).fillna(timed[pruned])})


def front(points: list[Point], cost_is_lower: bool, quality_is_lower: bool) -> list[Point]:
    """Return the points of the Pareto front, the cheapest first."""
    signs = 1 if cost_is_lower else -1, 1 if quality_is_lower else -1
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (signs[0] * point.cost, signs[1] * point.quality)):
        if not best or signs[1] * point.quality < signs[1] * best[-1].quality:
            best.append(point)
    return best


def fronts(study: Study, series: list[Series], names: list[str], cost: CostAxis) -> str:
    """Return the front of each number in words, for the caption."""
    best = {name: front(points(study, series, name, cost), cost.lower_is_better, is_of_text(name)) for name in names}
    return " ".join(f"On the front of {name}: {', '.join(point.label for point in best[name])}." for name in names)


def quality_over(cost: CostAxis) -> Callable[[Any, Study, str, list[Series]], None]:
    """Return the function that draws a number over a cost; the dense models are crosses."""

    def panel(axes: Any, study: Study, name: str, series: list[Series]) -> None:
        shown = points(study, series, name, cost)
        best = front(shown, cost.lower_is_better, is_of_text(name))
        between = "steps-post" if cost.lower_is_better else "steps-pre"
        ordered = sorted((point.cost, point.quality) for point in best)
        axes.plot(*zip(*ordered, strict=True), color=MUTED, alpha=0.35, linewidth=5, drawstyle=between, zorder=1)
        for i, style in enumerate(styles(series)):
            line = [(point.cost, point.quality) for point in shown if point.series == i]
            axes.plot(*zip(*line, strict=True) if line else ([], []), **style | {"linewidth": 0.8})
        for point in (point for point in shown if point.series is None):
            axes.plot(point.cost, point.quality, marker="x", markersize=8, markeredgewidth=2, color=INK)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    return panel
