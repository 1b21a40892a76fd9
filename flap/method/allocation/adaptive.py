"""The structures AL-MM and AL-AM, which rank the units of all layers together (FLAP, section 3.3).

A unit is a KV head with its query heads, a neuron of an MLP, or an expert. A plan lists the units
that stay. Units are ranked by FLAP's z-score, or by the error that their removal causes in the
output of their layer. Units of a layer that can only be removed together form a block. The budget
says which share of the parameters to remove. It may have bounds, which are upper limits on costs of
the pruned model, such as its bytes.

Legend: G: attention units (KV heads) · C: channels of a unit · I: neurons or experts of an MLP · B:
blocks · N: units of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flap.config import require
from flap.method.allocation.budget import Budget, lowest_ratio
from flap.method.allocation.by_hand import ManualHeads
from flap.method.allocation.plan import LayerPlan, PruningPlan
from flap.method.allocation.ranking import affordable, best_of_each, in_blocks, standardise, within
from flap.method.allocation.structure import Structure
from flap.method.importance import Scores
from flap.models import Pair

SCALES = ("z-score", "error", "relative")


@dataclass(frozen=True, kw_only=True)
class Scaled(Structure):
    """Base class of structures that rank the units of all layers together.

    `scale` selects the value by which units are ranked:

    - z-score: the scores of all channels of one attention or one MLP are standardised (to mean 0
      and standard deviation 1), and then averaged over the channels of each unit. Two units with
      equal z-scores in different layers may cause different errors when they are removed.
    - error: the squared error that the removal of the unit causes in the output of its layer,
      divided by the price of the unit, such as its number of parameters (`Budget.prices`). The
      squared error is the sum of the scores of the unit's channels.
    - relative: the same squared error, divided by the price of the unit, and multiplied by the mean
      of 1 / ‖h‖² over tokens (`LayerStatistics.inverse_power`). h is the input of the layer (the
      residual stream) at a token.

    If neurons of experts are ranked by `error` or `relative`, the squared error in the output of an
    expert is multiplied by the mean square of the weight that the router gives this expert
    (`Scores.routed_power`). The product is the squared error in the output of the layer.
    """

    # the value by which units are ranked: z-score, error or relative
    scale: str = "z-score"

    def __post_init__(self) -> None:
        require(self.scale in SCALES, "structure.scale", self.scale, f"one of {', '.join(SCALES)}")

    @property
    def ranks_errors(self) -> bool:
        """Whether scores must be squared errors in layer outputs: true unless `scale=z-score`."""
        return self.scale != "z-score"

    def on_one_scale(self, scores: Scores, budget: Budget) -> list[Pair[Tensor]]:
        """Convert the scores of the units of each layer to a scale that all layers share.

        Return score_G for the attention units of each layer, and score_I for its neurons or
        experts. The scores are in float64. The units with the lowest scores are removed first.
        """
        if not self.ranks_errors:
            return [
                Pair(standardise(layer.attention).mean(dim=1), standardise(layer.mlp))
                for layer in scores.layers
            ]
        scaled = []
        for i, (head_price, neuron_price) in enumerate(budget.prices):
            weight = scores.inverse_power[i] if self.scale == "relative" else 1.0
            error_G, error_I = _errors(scores, i)
            scaled.append(Pair(error_G / head_price * weight, error_I / neuron_price * weight))
        return scaled


def _errors(scores: Scores, layer: int) -> Pair[Tensor]:
    """Return the squared error that the removal of each unit causes in the output of its layer.

    In a mixture of experts, one neuron of each expert is removed at the same time, so the error of
    this removal is the sum of the errors of these neurons. But the ranking uses the mean of these
    errors (`in_blocks`). So this function multiplies the error of each neuron by the number of
    experts.
    """
    score_GC, score_I = scores.layers[layer]
    error_I = score_I.double()
    power = scores.routed_power[layer] if scores.routed_power else ()
    if power:
        experts = len(power)
        power_E1 = experts * torch.tensor(power, dtype=torch.float64)[:, None]
        error_I = (error_I.unflatten(0, (experts, -1)) * power_E1).flatten()
    return Pair(score_GC.double().sum(dim=1), error_I)


@dataclass(frozen=True)
class ALAM(Scaled):
    """AL-AM, the default: one ranking of all units (FLAP, arXiv 2312.11983, section 3.3).

        keep the n highest-ranked units, with n such that Σ price is nearest to (1 − ratio) · total

    price: the number of parameters that are removed with a unit.
    total: the sum of the prices of all units.
    ratio: the share of the parameters to remove.

    The option `scale` selects the value by which the units of all layers are ranked: the mean of
    the standardised scores of a unit's channels ("z-score", the default), the error that removing
    the unit causes, divided by the unit's price ("error"), or a relative error ("relative").
    `Scaled` defines the three values. Every layer keeps at least `min_heads` attention units, and
    at least `min_neurons` neurons or as many experts as the router chooses for each token.

    If a target, such as target.bytes, is set instead of a ratio, AL-AM goes through the units from
    the highest rank to the lowest, and keeps each unit with which the model does not exceed the
    target. If a unit is removed, all lower-ranked units of the same attention or MLP are also
    removed (`ranking.within`).

        python -m flap structure=AL-AM
    """

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        return one_ranking(self, self.on_one_scale(scores, budget), budget)


@dataclass(frozen=True)
class ALMM(Scaled, ManualHeads):
    """AL-MM: separate rankings of heads and neurons (FLAP, arXiv 2312.11983, section 3.3).

    The lowest-ranked KV heads of the whole model are removed with their query heads, until
    `remove_heads` query heads are removed. Then the lowest-ranked neurons of the whole model are
    removed until the budget is met. As in AL-AM, the option `scale` selects the value by which
    units are ranked.

        python -m flap structure=AL-MM structure.remove_heads=32
    """

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Choose the attention units that stay, then the neurons that stay, and return the plan."""
        budget = lowest_ratio(
            budget, lambda at_ratio: at_ratio.widths(self.allocate(scores, at_ratio))
        )
        heads, neurons = _in_blocks(self, self.on_one_scale(scores, budget), budget)

        # 1. choose the attention units that stay, so that `remove_heads` query heads are removed
        kept_heads = self._kept_heads(heads, budget)
        parameters = 0
        for kept_B, blocks in zip(kept_heads, heads, strict=True):
            parameters += int(kept_B.sum()) * blocks.price

        # 2. choose the neurons that stay, so that the whole plan meets the budget
        kept_neurons = _keep(budget.total - budget.to_remove - parameters, neurons)
        return _plan(heads + neurons, [*kept_heads, *kept_neurons])

    def _kept_heads(self, heads: "Sequence[Blocks]", budget: Budget) -> list[Tensor]:
        """Return, for each layer, a mask that is true for the blocks of attention units to keep.

        All blocks with the same number of query heads, whatever their layer, are ranked together.
        """
        removable = [blocks.score_B[blocks.fewest :] for blocks in heads]
        removed = self.blocks_to_remove(removable, budget)
        kept = [torch.ones(len(blocks.score_B), dtype=torch.bool) for blocks in heads]
        for size, layers in self.by_size(budget).items():
            equal = [heads[i]._replace(price=1) for i in layers]
            number = sum(len(blocks.score_B) for blocks in equal) - removed[size]
            for i, kept_B in zip(layers, _keep(number, equal), strict=True):
                kept[i] = kept_B
        return kept


class Blocks(NamedTuple):
    """The attention units or neurons of a layer, in blocks of units that are removed together."""

    score_B: Tensor  # for each block, the mean score of its units; in descending order
    units_BN: Tensor  # indices of the units of each block
    price: int  # number of parameters that are removed with one block
    fewest: int  # minimum number of blocks that the layer keeps
    costs: list[Tensor]  # for each bound of the budget, the costs of keeping 0, 1, 2, … blocks


def one_ranking(
    structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget
) -> PruningPlan:
    """Rank all units of all layers together, and return the plan that meets the budget.

    scaled: for each layer, the scores of its attention units (score_G) and of its neurons or
        experts (score_I), on a scale that all layers share.
    """
    heads, neurons = _in_blocks(structure, scaled, budget)
    blocks = heads + neurons
    if not budget.bounds:
        return _plan(blocks, _keep(budget.total - budget.to_remove, blocks))

    scores = [layer.score_B for layer in blocks]
    kept_B = within(
        scores,
        fewest=[layer.fewest for layer in blocks],
        costs=list(zip(*(layer.costs for layer in blocks), strict=True)),
        most=[bound.asked - bound.fixed for bound in budget.bounds],
    )
    return _plan(blocks, kept_B.split([len(score_B) for score_B in scores]))


def _keep(to_keep: float, blocks: Sequence[Blocks]) -> tuple[Tensor, ...]:
    """Rank the blocks of all layers together, and return for each layer a mask of its kept blocks.

    Each layer keeps at least its minimum number of blocks (`Blocks.fewest`).

    to_keep: the desired number of parameters in all kept blocks. The actual number is as near to
        this number as possible.
    """
    scores = [layer.score_B for layer in blocks]
    sizes = [len(score_B) for score_B in scores]
    prices = [
        torch.full((size,), layer.price, dtype=torch.float64)
        for size, layer in zip(sizes, blocks, strict=True)
    ]
    protected_B = best_of_each(scores, [layer.fewest for layer in blocks])
    kept_B = affordable(torch.cat(scores), torch.cat(prices), protected_B, to_keep)
    return tuple(kept_B.split(sizes))


def _in_blocks(
    structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget
) -> Pair[list[Blocks]]:
    """Return each layer's blocks of attention units, and each layer's blocks of neurons.

    scaled: for each layer, the scores of its attention units (score_G) and of its neurons or
        experts (score_I), on a scale that all layers share.
    """
    pair: Pair[list[Blocks]] = Pair([], [])
    for i, layer in enumerate(budget.layers):
        limits = structure.limits(layer)
        for block, blocks in enumerate(pair):
            size = limits[block].size
            score_B, units_BN = in_blocks(scaled[i][block], size, layer[block].members)
            price = layer[block].price * size
            costs = [bound.costs[i][block][::size] for bound in budget.bounds]
            blocks.append(Blocks(score_B, units_BN, price, limits[block].fewest, costs))
    return pair


def _plan(blocks: Sequence[Blocks], kept: Sequence[Tensor]) -> PruningPlan:
    """Return the plan that keeps the blocks for which the masks `kept` are true.

    In `blocks` and `kept`, the attentions of all layers come before the MLPs of all layers.
    """
    units = []
    for layer, kept_B in zip(blocks, kept, strict=True):
        units.append(tuple(layer.units_BN[kept_B].flatten().sort().values.tolist()))
    num_layers = len(units) // 2
    layers = zip(units[:num_layers], units[num_layers:], strict=True)
    return PruningPlan(tuple(LayerPlan(*layer) for layer in layers))
