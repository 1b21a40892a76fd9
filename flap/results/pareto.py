"""Pareto fronts of a model's quality and cost, such as accuracy and number of parameters.

A model is on the front unless another model is cheaper and at least as good, or is better and at
most as expensive. Dense models can be on the front, too. Two costs that differ by at most 1 % count
as equal, because pruning removes whole heads and neurons and therefore removes the requested share
of the parameters only approximately. Two qualities count as equal if they are equal after rounding
to four significant digits. A study consists of the runs of one or more sweeps.
"""

from typing import NamedTuple

from pandas import DataFrame

from flap.results.series import Series
from flap.results.study import Study


class CostAxis(NamedTuple):
    """A cost of models, such as the number of parameters, for the horizontal axis of a plot."""

    name: str
    label: str
    # column of `Study.results` with the dense model's cost; "" if the cost is measured relative to
    # the dense model, so that the dense model's cost is always 1
    dense: str
    pruned: str  # column of `Study.results` with the pruned model's cost
    lower_is_better: bool = True  # whether lower values are better; false for a speed

    def measured(self, study: Study) -> bool:
        """Return whether the study has measured this cost for a pruned model."""
        return bool(study.results.reindex(columns=[self.pruned]).notna().any(axis=None))


SAME_COST = 0.01  # costs that differ by at most this share count as equal
COSTS = (
    CostAxis(
        "parameters",
        label="parameters",
        dense="parameters_before",
        pruned="parameters_after",
    ),
    CostAxis(
        "bytes",
        label="bytes of the checkpoint",
        dense="dense/efficiency/checkpoint_bytes",
        pruned="pruned/efficiency/checkpoint_bytes",
    ),
    CostAxis(
        "speed",
        label="decoding speed, times the dense model's",
        dense="",
        pruned="pruned/efficiency/decode_tokens_per_second_ratio",
        lower_is_better=False,
    ),
)


def points(study: Study, series: list[Series], name: str, cost: CostAxis) -> DataFrame:
    """Return a table with a row for each point of a plot of quality over cost.

    There is a point for each dense model, and a point for each ratio of each series. The point of a
    ratio is the mean over the runs with different seeds. The columns of the table are cost,
    quality, label, and the index of the series, which is -1 for a dense model.

    series: the groups of runs that plots draw as lines.
    name: the name of the measured number that stands for quality, such as "zero_shot/average".
    """
    rows = []
    for i, line in enumerate(series):
        means = line.by_ratio.xs("mean", axis="columns", level=1)
        measured = means[[cost.pruned, f"pruned/{name}"]].dropna()
        for ratio, x, y in measured.itertuples():
            rows.append((x, y, f"{line.label} {line.structure} {ratio:g}", i))

    columns = ["model", cost.dense, f"dense/{name}"]
    dense = study.dense.reindex(columns=columns).fillna({"": 1.0})
    measured = dense.dropna(subset=columns[1:])
    for model, x, y in measured.itertuples(index=False):
        rows.append((x, y, study.dense_name(model), -1))
    return DataFrame(rows, columns=["cost", "quality", "label", "series"])


def front(points: DataFrame, cost_is_lower: bool, quality_is_lower: bool) -> DataFrame:
    """Return the points of the Pareto front, with the cheapest model first.

    cost_is_lower: whether a lower cost is better. quality_is_lower: whether a lower value of the
        quality is better.
    """
    cost = points.cost if cost_is_lower else -points.cost
    quality = points.quality.map("{:.4g}".format).astype(float)
    loss = quality if quality_is_lower else -quality

    on_front = []
    for i in points.index:
        as_cheap = (cost - cost[i]).abs() <= SAME_COST * points.cost[i]
        cheaper = (cost < cost[i]) & ~as_cheap
        better = (loss < loss[i]) & as_cheap
        as_good = (loss <= loss[i]) & cheaper
        on_front.append(not (better | as_good).any())
    return points.loc[on_front].sort_values("cost", ascending=cost_is_lower)
