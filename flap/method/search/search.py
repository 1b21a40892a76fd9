"""The structure `search`, which ranks units by measured effects on the model's predictions.

A block is the attention or the MLP of a layer. A unit is a KV head with its query heads, a neuron,
or an expert. A plan lists the units that stay. The divergence is KL(dense ‖ pruned) between the two
models' distributions of the next token. It is measured in trials: in a trial, one block loses its
lowest-scored units. The nats of a unit are the part of a measured divergence that is attributed to
the removal of this unit. The price of a unit is its number of parameters, or another cost that the
removal of the unit saves.

Legend of tensor suffixes: G: attention units · C: channels of an attention unit · U: units of a
block · I: neurons (of all experts) or whole experts · E: experts · R: neurons of an expert, sorted
by score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from flap.config import require, require_counts
from flap.method.allocation import Budget, LayerPlan, PruningPlan, Structure, Units
from flap.method.allocation.adaptive import one_ranking
from flap.method.allocation.ranking import from_highest, highest, ranked
from flap.method.importance import Scores
from flap.models import Pair

# The minimum rise of the divergence from one level in `Search.levels` to the next, in nats. If no
# rise was measured, this minimum makes sure that units keep the order of their scores.
LEAST = 1e-200
# Minimum score of a unit in `spread`, as a share of the highest score. Lower scores are raised to
# this minimum, so that every unit increases the sum of scores.
LEAST_COST = 1e-9


@dataclass(frozen=True)
class Search(Structure):
    """search: rank all units by how much their removal raises the divergence, divided by a price.

    Units are scored and trials are measured in the same pass over the layers. In a trial, one block
    loses its lowest-scored units, its output projection is changed to make up for this loss, and
    all other blocks stay dense. Each block has a trial for each share of units in `levels`. The
    divergence KL(dense ‖ trial) of the predictions is measured on `tokens` calibration tokens
    (docs/method.md says on which tokens). If the calibration text is a mixture, the divergence is
    measured on each text of the mixture, and the divergence of the trial is the largest of these
    divergences.

    `in_nats` divides the divergence of a trial, in nats, among the removed units. All units are
    then ranked by their nats divided by their price, which is their number of parameters or another
    cost (`Budget.prices`). The search does not measure the divergence of the final plan, but the
    option `eval=divergence` does so after pruning.
    """

    # number of calibration tokens on which each trial is measured, 1 or more
    tokens: int = 4096
    # shares of a block's units that trials remove, each in (0, 1)
    levels: list[float] = field(default_factory=lambda: [0.25])

    def __post_init__(self) -> None:
        require_counts(self, "structure", tokens=1)
        levels_fit = bool(self.levels) and all(0 < level < 1 for level in self.levels)
        allowed = "shares of a block's units between 0 and 1"
        require(levels_fit, "structure.levels", self.levels, allowed)

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Rank all units by nats divided by price, and return the plan."""
        return one_ranking(self, self.in_nats(scores, budget), budget)

    def trials(self, scores: Pair[Tensor], units: Pair[Units]) -> list[LayerPlan]:
        """Return the plan of a layer in each of its trials. A trial prunes one block of the layer.

        The trials of the attention come first, and then the trials of the MLP.

        scores: the scores of the layer's attention channels (score_GC), and of its neurons or
            experts (score_I).
        """
        score_G, score_I = unit_scores(scores)
        removals = self.removals(units)
        heads = tuple(range(len(score_G)))
        neurons = tuple(range(len(score_I)))
        trials = []
        for removed in removals.attention:
            kept_heads = highest(score_G, len(heads) - removed)
            trials.append(LayerPlan(kept_heads, neurons))
        for removed in removals.mlp:
            kept_neurons = highest(score_I, units.mlp.count - removed, units.mlp.members)
            trials.append(LayerPlan(heads, kept_neurons))
        return trials

    def removals(self, units: Pair[Units]) -> Pair[list[int]]:
        """Return the number of units that each trial removes, for both blocks of a layer.

        If the units are neurons of experts, this is the number of neurons that each single expert
        loses.
        """
        heads = removal_counts(self.levels, units.attention.count)
        counts = removal_counts(self.levels, units.mlp.count)
        most = units.mlp.count - units.mlp.fewest
        neurons = {min(count, most) for count in counts}
        return Pair(heads, sorted(neurons - {0}))

    def in_nats(self, scores: Scores, budget: Budget) -> list[Pair[Tensor]]:
        """Divide the nats of each unit by the unit's price, and return the quotients by layer.

        A layer has quotients for its attention units (G), and for its neurons or experts (I). The
        nats come from the measured divergences of trials. Each trial of a block removes a different
        share of the block's units (`levels`). The rise of the divergence from one trial to the
        trial with the next higher share is divided among the units that only the second trial
        removes, in proportion to their scores. The result is a curve of the divergence over the
        number of removed units. The curve is replaced with its lower convex envelope, so that no
        unit of a block has fewer nats than a lower-scored unit of this block.
        """
        prices = budget.prices
        layers = []
        for i, units in enumerate(budget.layers):
            # `measured` has the trials of the attention first, and then the trials of the MLP
            removed_heads, removed_neurons = self.removals(units)
            measured = scores.divergences[i]
            of_heads = dict(zip(removed_heads, measured, strict=False))
            of_neurons = dict(zip(removed_neurons, measured[len(removed_heads) :], strict=True))

            score_G, score_I = unit_scores(scores.layers[i])
            nats_G = spread_by_rank(score_G, of_heads, units.attention.members)
            nats_I = spread_by_rank(score_I, of_neurons, units.mlp.members)
            price = prices[i]
            layers.append(Pair(nats_G / price.attention, nats_I / price.mlp))
        return layers


def unit_scores(layer: Pair[Tensor]) -> Pair[Tensor]:
    """Return the scores of a layer's attention units (score_G), and of its MLP's units (score_I).

    The score of an attention unit is the sum of the scores of its channels.
    """
    return Pair(layer.attention.sum(dim=1), layer.mlp)


def removal_counts(levels: Sequence[float], units: int) -> list[int]:
    """Convert the shares `levels` of a block's units into numbers of units to remove, ascending.

    Each number is at least 1, and leaves at least one unit. So shares that round to no unit or to
    all units are dropped. If this would drop all shares, they are rounded to the nearest possible
    number instead. For a block with fewer than two units, the list is empty.
    """
    if units < 2:
        return []
    rounded = {math.floor(level * units + 0.5) for level in levels}
    inside = {count for count in rounded if 0 < count < units}
    nearest = {min(max(count, 1), units - 1) for count in rounded}
    return sorted(inside or nearest)


def spread_by_rank(score_I: Tensor, measured: dict[int, float], experts: int) -> Tensor:
    """Return the nats of each unit of a block (nats_I), computed with `spread`.

    The block may have several experts, each with the same number of neurons. All experts lose the
    same number of neurons. So the neurons that have the same rank in their experts count as one
    unit for `spread`. The score of this unit is the mean of their scores, and all of these neurons
    get the nats of this unit.

    measured: see `spread`. If the block has several experts, the keys are the numbers of neurons
        that each expert loses.
    experts: the number of experts; 1 for a block without experts, or if whole experts are units.
    """
    order_ER = ranked(score_I, experts)
    nats_R = spread(score_I[order_ER].double().mean(dim=0), measured)
    nats_I = nats_R.new_empty(order_ER.numel())
    nats_I[order_ER] = nats_R
    return nats_I


def spread(score_U: Tensor, measured: dict[int, float]) -> Tensor:
    """Return the nats of each unit (nats_U): the divergence that the removal of the unit adds.

    Units are removed from the lowest score to the highest. A unit never has fewer nats than a
    lower-scored unit.

    measured: a dict from the number of removed units to the divergence in nats per token.
    """
    # 1. compute the sums of the scores of the 0, 1, 2, … lowest-scored units
    order_U = from_highest(score_U).flip(0)
    cost_U = score_U[order_U].double()
    if (cost_U > 0).any():
        least = LEAST_COST * float(cost_U.max())
        cost_U = cost_U.clamp_min(least)
    else:
        cost_U = torch.ones_like(cost_U)
    error = torch.zeros(len(cost_U) + 1).double()
    error[1:] = cost_U.cumsum(0)

    # 2. interpolate the divergence between the trials, and extrapolate it beyond the last trial, in
    # proportion to the sum of scores
    divergence = torch.zeros_like(error)
    start = 0
    slope = 1.0
    for end, nats in sorted(measured.items()):
        rise = max(nats - float(divergence[start]), LEAST)
        slope = rise / float(error[end] - error[start])
        between = error[start : end + 1] - error[start]
        divergence[start : end + 1] = divergence[start] + slope * between
        start = end
    beyond = error[start:] - error[start]
    divergence[start:] = divergence[start] + slope * beyond

    # 3. The nats of each unit are a step of the lower convex envelope (the difference between two
    # neighbouring values). Steps on a straight piece of the envelope are equal. To keep the order
    # of the scores, the steps are multiplied by factors that grow very slightly with the score.
    factor = 1 + 1e-9 * torch.arange(len(order_U)).double()
    nats_U = torch.empty_like(cost_U)
    nats_U[order_U] = convex_steps(divergence.tolist()) * factor
    return nats_U


def convex_steps(values: list[float]) -> Tensor:
    """Return the differences between neighbouring values of a sequence's lower convex envelope.

    The corners of the envelope are found with Andrew's monotone chain algorithm.
    """
    corners = [0]
    for end in range(1, len(values)):
        while len(corners) > 1:
            last, corner = corners[-2:]
            if _slope(values, last, corner) < _slope(values, corner, end):
                break
            corners.pop()
        corners.append(end)
    steps = []
    for start, end in pairwise(corners):
        steps += [_slope(values, start, end)] * (end - start)
    return torch.tensor(steps, dtype=torch.float64)


def _slope(values: list[float], start: int, end: int) -> float:
    return (values[end] - values[start]) / (end - start)
