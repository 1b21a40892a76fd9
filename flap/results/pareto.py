"""Panels of quality, bits per byte or an accuracy, over what a model costs: parameters, bytes, speed; its Pareto front.

On the front are the models, dense ones included, for which no other model is both cheaper and better, or as good.
Costs within 1 % are equal, as a ratio is met only to within a unit; so are qualities of the same four digits.
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
    dense: str  # empty: it is 1
    pruned: str
    lower_is_better: bool = True

    def measured(self, study: Study) -> bool:
        """Return whether the study has the number of a pruned model."""
        return self.pruned in study.results and bool(study.results[self.pruned].notna().any())


SAME_COST = 0.01  # of the cost
BYTES = "efficiency/checkpoint_bytes"
SPEED = "efficiency/decode_tokens_per_second_ratio"
COSTS = (
    CostAxis("parameters", "parameters", "parameters_before", "parameters_after"),
    CostAxis("bytes", "bytes of the checkpoint", f"dense/{BYTES}", f"pruned/{BYTES}"),
    CostAxis("speed", "decoding speed, times the dense model's", "", f"pruned/{SPEED}", False),
)


def points(study: Study, series: list[Series], name: str, cost: CostAxis) -> DataFrame:
    """Return the points of a number over a cost: cost, quality, label, and the number of the series; -1: a dense model.

    They are of each series at each ratio, the mean of the seeds, and of the dense models.
    """
    found = []
    for i, line in enumerate(series):
        means = (
            line.rows.groupby("requested")[["ratio", cost.pruned, f"pruned/{name}"]].mean().dropna()
        )
        for ratio, x, y in means.sort_values("ratio").itertuples(index=False):
            found.append((x, y, f"{line.label} {line.structure} {ratio:g}", i))
    dense = study.dense.reindex(columns=["model", cost.dense, f"dense/{name}"]).fillna({"": 1.0})
    single = dense.model.nunique(dropna=False) == 1
    for model, x, y in dense[dense.notna().iloc[:, 1:].all(axis=1)].itertuples(index=False):
        found.append((x, y, "dense" if single else f"dense {model}", -1))
    return DataFrame(found, columns=["cost", "quality", "label", "series"])


def front(points: DataFrame, cost_is_lower: bool, quality_is_lower: bool) -> DataFrame:
    """Return the points of the Pareto front, the cheapest first."""
    loss = points.quality.map(
        lambda quality: float(f"{quality:.4g}") * (1 if quality_is_lower else -1)
    )
    best_near = [loss[(points.cost - cost).abs() <= SAME_COST * cost].min() for cost in points.cost]
    unbeaten = points.assign(loss=loss)[loss.to_numpy() == best_near]
    ordered = unbeaten.sort_values(["cost", "quality"], ascending=[cost_is_lower, quality_is_lower])
    best = ordered.pop("loss").cummin()
    return ordered[~best.duplicated()]


def fronts(study: Study, series: list[Series], names: list[str], cost: CostAxis) -> str:
    """Return the front of each number in words, for the caption."""
    best = {
        name: front(points(study, series, name, cost), cost.lower_is_better, is_of_text(name))
        for name in names
    }
    return " ".join(f"On the front of {name}: {', '.join(best[name].label)}." for name in names)


def quality_over(cost: CostAxis) -> Callable[[Any, Study, str, list[Series]], None]:
    """Return the function that draws a number over a cost; the dense models are crosses."""

    def panel(axes: Any, study: Study, name: str, series: list[Series]) -> None:
        shown = points(study, series, name, cost)
        best = front(shown, cost.lower_is_better, is_of_text(name)).sort_values("cost")
        between = "steps-post" if cost.lower_is_better else "steps-pre"
        axes.plot(
            best.cost,
            best.quality,
            color=MUTED,
            alpha=0.35,
            linewidth=5,
            drawstyle=between,
            zorder=1,
        )
        for i, style in enumerate(styles(series)):
            line = shown[shown.series == i]
            axes.plot(line.cost, line.quality, **style | {"linewidth": 0.8})
        dense = shown[shown.series == -1]
        axes.plot(dense.cost, dense.quality, "x", markersize=8, markeredgewidth=2, color=INK)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    return panel
