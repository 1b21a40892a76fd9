"""search: the units of all layers are ranked by the measured effect of their removal on the model's predictions.

Legend: G attention units · U units of a block · I neurons of all experts · E experts · R ranks of an expert's neurons.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from flap.config import require
from flap.method.allocation import Budget, LayerPlan, PruningPlan, Structure, Units
from flap.method.allocation.adaptive import one_ranking
from flap.method.allocation.ranking import highest, ranked
from flap.method.importance import Scores
from flap.models import Pair

LEAST = 1e-200  # the least rise between two levels, in nats: where none was measured, the scores give the order


@dataclass(frozen=True)
class Search(Structure):
    """search: one ranking of all attention units and neurons by nats over price, measured on the predictions.

    While units are scored, one block at a time has its lowest-scored units removed, a share from `levels` of them, with
    compensation, while the rest of the model is dense. The divergence is measured on `tokens` calibration tokens
    (docs/method.md says which; of a mixture, the text that loses most counts). `in_nats` distributes it over the units,
    which are ranked by nats over price. All of it takes one walk, the one that scores. The plan itself is not measured:
    `eval=divergence` does that.
    """

    tokens: int = 4096  # calibration tokens on which each block is measured alone, 1 or more
    levels: list[float] = field(
        default_factory=lambda: [0.25]
    )  # shares of a block's units to remove, each in (0, 1)

    def __post_init__(self) -> None:
        levels_fit = bool(self.levels) and all(0 < level < 1 for level in self.levels)
        require(self.tokens >= 1, "structure.tokens", self.tokens, "a whole number >= 1")
        require(
            levels_fit, "structure.levels", self.levels, "shares of a block's units between 0 and 1"
        )

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return the plan of one ranking by nats over price. scores: with the divergences of all `trials`."""
        return one_ranking(self, self.in_nats(scores, budget), budget)

    def trials(self, scores: Pair[Tensor], units: Pair[Units]) -> list[LayerPlan]:
        """Return the layer of each trial: one block loses its lowest-scored units at each level, the other is whole."""
        (score_G, score_I), removals = unit_scores(scores), self.removals(units)
        heads = tuple(range(len(score_G)))
        neurons = tuple(range(len(score_I)))
        return [
            *(LayerPlan(highest(score_G, len(heads) - n), neurons) for n in removals.attention),
            *(
                LayerPlan(heads, highest(score_I, units.mlp.count - n, units.mlp.members))
                for n in removals.mlp
            ),
        ]

    def removals(self, prices: Pair[Units]) -> Pair[list[int]]:
        """Return how many units the trials of each block of a layer remove; of experts, of each one."""
        heads, neurons = (removal_counts(self.levels, block.count) for block in prices)
        most = prices.mlp.count - prices.mlp.fewest
        return Pair(heads, sorted({min(n, most) for n in neurons} - {0}))

    def in_nats(self, scores: Scores, budget: Budget) -> list[Pair[Tensor]]:
        """Return nats_G and nats_I of each layer, nats over price; within a block they rank units as the scores do.

        The rise of the divergence between two levels is divided among the units in proportion to their scores. Then the
        curve is replaced by its lower convex envelope, so that no unit has fewer nats than a unit with a lower score.
        """
        rows = zip(scores.layers, scores.divergences, budget.layers, budget.prices, strict=True)
        return [self._of_layer(*row) for row in rows]

    def _of_layer(
        self,
        scores: Pair[Tensor],
        measured: Sequence[float],
        units: Pair[Units],
        prices: Pair[float],
    ) -> Pair[Tensor]:
        heads, neurons = self.removals(units)
        by_removal = (
            dict(zip(heads, measured, strict=False)),
            dict(zip(neurons, measured[len(heads) :], strict=True)),
        )
        blocks = zip(unit_scores(scores), by_removal, units, prices, strict=True)
        return Pair(
            *(
                spread_by_rank(score_U, nats, one.members) / price
                for score_U, nats, one, price in blocks
            )
        )


def unit_scores(layer: Pair[Tensor]) -> Pair[Tensor]:
    """Return score_G and score_I of a layer: for each unit the sum over its channels."""
    return Pair(layer.attention.sum(dim=1), layer.mlp)


def removal_counts(levels: Sequence[float], units: int) -> list[int]:
    """Return how many units the shares `levels` of a block are, ascending; at least one is removed and one stays.

    Where no share comes to a unit of a block of few units, the nearest number that does is tried.
    """
    if units < 2:
        return []
    counts = {math.floor(level * units + 0.5) for level in levels}
    return sorted(
        {n for n in counts if 0 < n < units} or {min(max(n, 1), units - 1) for n in counts}
    )


def spread_by_rank(score_I: Tensor, measured: dict[int, float], experts: int) -> Tensor:
    """Return nats_I as `spread`, for experts that all lose as many neurons: a unit is one neuron of every expert.

    The neurons of one rank, each within its expert, have the same nats.
    """
    order_ER = ranked(score_I, experts)
    nats_R = spread(score_I[order_ER].double().mean(dim=0), measured)
    nats_I = nats_R.new_empty(order_ER.numel())
    nats_I[order_ER] = nats_R
    return nats_I


def spread(score_U: Tensor, measured: dict[int, float]) -> Tensor:
    """Return nats_U, the divergence that the removal of each unit adds after all lower-scored units; rises with score.

    measured: number of lowest-scored units that are removed -> divergence, in nats a token.
    """
    order = score_U.argsort(descending=True, stable=True).flip(
        0
    )  # the order in which `highest` removes them
    cost_U = score_U[order].double()
    cost_U = (
        cost_U.clamp_min(1e-9 * float(cost_U.max()))
        if (cost_U > 0).any()
        else torch.ones_like(cost_U)
    )
    error = torch.cat([torch.zeros(1).double(), cost_U.cumsum(0)])
    divergence = torch.zeros_like(error)
    start = 0
    slope = 1.0
    for end, nats in sorted(measured.items()):
        rise = max(nats - float(divergence[start]), LEAST)
        slope = rise / float(error[end] - error[start])
        divergence[start : end + 1] = divergence[start] + slope * (
            error[start : end + 1] - error[start]
        )
        start = end
    divergence[start:] = divergence[start] + slope * (
        error[start:] - error[start]
    )  # beyond the last level
    nats_U = torch.empty_like(cost_U)
    # within a straight piece of the envelope all steps are equal: the factor keeps the order of the scores
    nats_U[order] = convex_steps(divergence.tolist()) * (
        1 + 1e-9 * torch.arange(len(order)).double()
    )
    return nats_U


def convex_steps(values: list[float]) -> Tensor:
    """Return the differences of the lower convex envelope of a sequence (Andrew's monotone chain)."""
    corners = [0]
    for end in range(1, len(values)):
        while len(corners) > 1 and _slope(values, corners[-2], corners[-1]) >= _slope(
            values, corners[-1], end
        ):
            corners.pop()
        corners.append(end)
    pieces = pairwise(corners)
    return torch.tensor(
        [_slope(values, a, b) for a, b in pieces for _ in range(b - a)], dtype=torch.float64
    )


def _slope(values: list[float], start: int, end: int) -> float:
    return (values[end] - values[start]) / (end - start)
