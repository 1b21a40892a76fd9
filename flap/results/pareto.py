"""Panels of a quality over a cost, such as an accuracy over parameters, and their Pareto fronts.

A model is on the front if no other model, pruned or dense, is cheaper and at least as good, or
better and at most as expensive. Costs within 1 % count as equal, because a ratio is met only to
within a unit. Qualities with the same four digits count as equal, too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.ticker import EngFormatter
from pandas import DataFrame

from flap.results.number_texts import is_of_text
from flap.results.series import INK, MUTED, Series, styles
from flap.results.study import Study


class CostAxis(NamedTuple):
    """What a model costs."""

    name: str
    label: str
    dense: str  # column of `Study.results` with the dense model's cost; empty: the cost is 1
    pruned: str  # column of `Study.results` with the pruned model's cost
    lower_is_better: bool = True  # false for a speed

    def measured(self, study: Study) -> bool:
        """Return whether the study has this cost of a pruned model."""
        return self.pruned in study.results and bool(study.results[self.pruned].notna().any())


SAME_COST = 0.01  # costs that differ by at most this share are equal
DENSE = -1  # stands for the number of a series
BYTES = "efficiency/checkpoint_bytes"
SPEED = "efficiency/decode_tokens_per_second_ratio"
COSTS = (
    CostAxis("parameters", "parameters", "parameters_before", "parameters_after"),
    CostAxis("bytes", "bytes of the checkpoint", f"dense/{BYTES}", f"pruned/{BYTES}"),
    CostAxis("speed", "decoding speed, times the dense model's", "", f"pruned/{SPEED}", False),
)


def points(study: Study, series: list[Series], name: str, cost: CostAxis) -> DataFrame:
    """Return the points of a number over a cost: each series at each ratio, and the dense models.

    A point is the mean over the seeds. The columns are cost, quality, label, and the index of the
    series, which is -1 for a dense model.
    """
    found = []
    columns = ["ratio", cost.pruned, f"pruned/{name}"]
    for i, line in enumerate(series):
        means = line.rows.groupby("requested")[columns].mean().dropna()
        for ratio, x, y in means.sort_values("ratio").itertuples(index=False):
            found.append((x, y, f"{line.label} {line.structure} {ratio:g}", i))

    dense = study.dense.reindex(columns=["model", cost.dense, f"dense/{name}"]).fillna({"": 1.0})
    single = dense.model.nunique(dropna=False) == 1
    measured = dense.iloc[:, 1:].notna().all(axis=1)
    for model, x, y in dense[measured].itertuples(index=False):
        found.append((x, y, "dense" if single else f"dense {model}", DENSE))
    return DataFrame(found, columns=["cost", "quality", "label", "series"])


def front(points: DataFrame, cost_is_lower: bool, quality_is_lower: bool) -> DataFrame:
    """Return the points of the Pareto front, the cheapest first."""
    sign = 1 if quality_is_lower else -1
    loss = points.quality.map(lambda quality: sign * float(f"{quality:.4g}"))

    # of the points that cost the same, keep the best
    best_at_cost = []
    for cost in points.cost:
        same_cost = (points.cost - cost).abs() <= SAME_COST * cost
        best_at_cost.append(loss[same_cost].min())
    kept = points.assign(loss=loss)[loss.to_numpy() == best_at_cost]

    # from the cheapest on, keep those that are better than all before
    ordered = kept.sort_values(["cost", "quality"], ascending=[cost_is_lower, quality_is_lower])
    best_so_far = ordered.pop("loss").cummin()
    return ordered[~best_so_far.duplicated()]


def fronts(study: Study, series: list[Series], names: list[str], cost: CostAxis) -> str:
    """Return the front of each number in words, for the caption."""
    sentences = []
    for name in names:
        shown = points(study, series, name, cost)
        best = front(shown, cost.lower_is_better, is_of_text(name))
        sentences.append(f"On the front of {name}: {', '.join(best.label)}.")
    return " ".join(sentences)


def quality_over(cost: CostAxis) -> Callable[[Any, Study, str, list[Series]], None]:
    """Return the function that draws a number over a cost; the dense models are crosses."""

    def panel(axes: Any, study: Study, name: str, series: list[Series]) -> None:
        shown = points(study, series, name, cost)
        best = front(shown, cost.lower_is_better, is_of_text(name)).sort_values("cost")
        axes.plot(
            best.cost,
            best.quality,
            color=MUTED,
            alpha=0.35,
            linewidth=5,
            drawstyle="steps-post" if cost.lower_is_better else "steps-pre",
            zorder=1,
        )
        for i, style in enumerate(styles(series)):
            line = shown[shown.series == i]
            axes.plot(line.cost, line.quality, **style | {"linewidth": 0.8})
        dense = shown[shown.series == DENSE]
        axes.plot(dense.cost, dense.quality, "x", markersize=8, markeredgewidth=2, color=INK)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    return panel
