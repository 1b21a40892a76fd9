"""AL-MM and AL-AM: the units of all layers are ranked together, on a common scale (FLAP, section 3.3).

z-scores as in FLAP, or the error of their removal. Legend: G attention units · C channels a unit · I neurons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
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
    """The base class of structures that rank the units of all layers together.

    z-score = standardised over all channels of one layer and module type, and averaged over a unit's channels;
    it has no common meaning across layers. error = the squared output error of a unit (the sum of its scores) per
    parameter. relative = that error relative to the residual stream of an ordinary token, ‖e‖² / ‖h‖², per parameter.
    An error counts in its layer's output as a router weighs it (`Scores.routed_power`).
    """

    scale: str = "z-score"  # or error, or relative

    def __post_init__(self) -> None:
        require(self.scale in SCALES, "structure.scale", self.scale, f"one of {', '.join(SCALES)}")

    @property
    def ranks_errors(self) -> bool:
        """Whether scores must be squared output errors: for every scale but z-score."""
        return self.scale != "z-score"

    def on_one_scale(self, scores: Scores, budget: Budget) -> list[Pair[Tensor]]:
        """Return score_G and score_I of each layer on the scale `scale`, in float64, higher = keep."""
        if not self.ranks_errors:
            return [
                Pair(standardise(layer.attention).mean(dim=1), standardise(layer.mlp))
                for layer in scores.layers
            ]
        weights = scores.inverse_power if self.scale == "relative" else [1.0] * len(scores.layers)
        errors = [_errors(scores, i) for i in range(len(scores.layers))]
        return [
            Pair(*(error_U / price * weight for error_U, price in zip(layer, prices, strict=True)))
            for layer, prices, weight in zip(errors, budget.prices, weights, strict=True)
        ]


def _errors(scores: Scores, layer: int) -> Pair[Tensor]:
    """Return the squared error of the layer's output that each unit's removal causes.

    Where a unit is one of every member: times the number of members, as the ranking takes the mean over them.
    """
    score_GC, score_I = scores.layers[layer]
    power = scores.routed_power[layer] if scores.routed_power else ()
    error_I = score_I.double()
    if power:
        power_M1 = len(power) * torch.tensor(power, dtype=torch.float64)[:, None]
        error_I = (error_I.unflatten(0, (len(power), -1)) * power_M1).flatten()
    return Pair(score_GC.double().sum(dim=1), error_I)


@dataclass(frozen=True)
class ALAM(Scaled):
    """AL-AM, the default: the units of all layers in one ranking (FLAP, arXiv 2312.11983, section 3.3).

        keep the units with the highest scores, on one scale, whose Σ price is nearest to (1 − ratio) · total

    Units are KV heads with their query heads, and neurons. price: the parameters that are removed with a unit. See
    `Scaled` for the scale, and `Structure` for what every layer keeps.

        python -m flap structure=AL-AM
    """

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        return one_ranking(self, self.on_one_scale(scores, budget), budget)


@dataclass(frozen=True)
class ALMM(Scaled, ManualHeads):
    """AL-MM: heads and neurons of all layers in a ranking each (FLAP, arXiv 2312.11983, section 3.3).

    `remove_heads` query heads are removed by the one, and the rest of the budget by the other, in units as in `ALAM`.

        python -m flap structure=AL-MM structure.remove_heads=32
    """

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return the plan of two rankings, of all attention units and of all neurons."""
        budget = lowest_ratio(budget, lambda one: one.widths(self.allocate(scores, one)))
        heads, neurons = _in_blocks(self, self.on_one_scale(scores, budget), budget)
        kept_heads = self._kept_heads(heads, budget)
        kept_parameters = sum(
            int(kept_B.sum()) * one.price for kept_B, one in zip(kept_heads, heads, strict=True)
        )
        kept_neurons = _keep(budget.total - budget.to_remove - kept_parameters, neurons)
        return _plan(heads + neurons, [*kept_heads, *kept_neurons])

    def _kept_heads(self, heads: "Sequence[Blocks]", budget: Budget) -> list[Tensor]:
        """Return the mask of the kept blocks of each layer, from one ranking of all blocks of a size."""
        removed = self.blocks_to_remove([one.score_B[one.fewest :] for one in heads], budget)
        kept = [torch.ones(len(one.score_B), dtype=torch.bool) for one in heads]
        for size, layers in self.by_size(budget).items():
            alike = [heads[i]._replace(price=1) for i in layers]
            number = sum(len(one.score_B) for one in alike) - removed[size]
            for i, kept_B in zip(layers, _keep(number, alike), strict=True):
                kept[i] = kept_B
        return kept


class Blocks(NamedTuple):
    """The attention units, or the neurons, of a layer in blocks that are kept or removed together."""

    score_B: Tensor  # the means over a block's units
    units_BN: Tensor  # N units a block
    price: int  # of a block, in parameters
    fewest: int  # how many blocks the layer keeps at least
    costs: list[Tensor]  # for each bound, what they cost by how many stay


def one_ranking(
    structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget
) -> PruningPlan:
    """Return the plan of one ranking of all units of all layers, each at its price. scaled: scores on one scale."""
    blocks = list(chain(*_in_blocks(structure, scaled, budget)))
    if not budget.bounds:
        return _plan(blocks, _keep(budget.total - budget.to_remove, blocks))
    costs = zip(*(one.costs for one in blocks), strict=True)
    room = [one.asked - one.fixed for one in budget.bounds]
    kept_B = within(
        [one.score_B for one in blocks], [one.fewest for one in blocks], list(costs), room
    )
    return _plan(blocks, kept_B.split([len(one.score_B) for one in blocks]))


def _keep(to_keep: float, blocks: Sequence[Blocks]) -> tuple[Tensor, ...]:
    """Return the masks of the kept blocks, from one ranking of all, which keeps `fewest` of each layer at least."""
    scores = [one.score_B for one in blocks]
    price_B = torch.cat(
        [torch.full((len(one.score_B),), one.price, dtype=torch.float64) for one in blocks]
    )
    kept_B = affordable(
        torch.cat(scores), price_B, best_of_each(scores, [one.fewest for one in blocks]), to_keep
    )
    return torch.split(kept_B, list(map(len, scores)))


def _in_blocks(
    structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget
) -> Pair[list[Blocks]]:
    """Return the blocks of attention units and those of neurons, of each layer."""
    pair: Pair[list[Blocks]] = Pair([], [])
    for i, layer in enumerate(budget.layers):
        for b, (units, limits) in enumerate(zip(layer, structure.limits(layer), strict=True)):
            costs = [bound.costs[i][b][:: limits.size] for bound in budget.bounds]
            blocks = in_blocks(scaled[i][b], limits.size, units.members)
            pair[b].append(Blocks(*blocks, units.price * limits.size, limits.fewest, costs))
    return pair


def _plan(blocks: Sequence[Blocks], kept: Sequence[Tensor]) -> PruningPlan:
    """Return the plan of the kept blocks, those of all attentions before those of all MLPs."""
    pairs = zip(blocks, kept, strict=True)
    units = [tuple(one.units_BN[kept_B].flatten().sort().values.tolist()) for one, kept_B in pairs]
    num_layers = len(units) // 2
    return PruningPlan(tuple(map(LayerPlan, units[:num_layers], units[num_layers:])))
