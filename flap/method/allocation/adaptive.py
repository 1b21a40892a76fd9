"""AL-MM and AL-AM: the units of all layers are ranked together, on a common scale (FLAP, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from flap.method.allocation.budget import Budget, lowest_ratio
from flap.method.allocation.by_hand import ManualHeads
from flap.method.allocation.plan import LayerPlan, PruningPlan
from flap.method.allocation.ranking import affordable, best_of_each, in_blocks, within
from flap.method.allocation.scale import Scaled
from flap.method.allocation.structure import Structure
from flap.method.importance import Scores
from flap.models import Pair


@dataclass(frozen=True)
class ALAM(Scaled):
    """AL-AM, the default: the units of all layers in one ranking (FLAP, arXiv 2312.11983, section 3.3).

        keep the units with the highest scores, on one scale, whose Σ price is nearest to (1 − ratio) · total

    Units are KV heads with their query heads, and neurons. price: the parameters that are removed with a unit. See
    `Scaled` for the scale, and `Structure` for what every layer keeps.

        python -m flap structure=AL-AM
    """

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return the plan of one ranking of all units."""
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
        kept_parameters = sum(int(kept_B.sum()) * one.price for kept_B, one in zip(kept_heads, heads, strict=True))
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


def one_ranking(structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget) -> PruningPlan:
    """Return the plan of one ranking of all units of all layers, each at its price. scaled: scores on one scale."""
    blocks = list(chain(*_in_blocks(structure, scaled, budget)))
    if not budget.bounds:
        return _plan(blocks, _keep(budget.total - budget.to_remove, blocks))
    costs, room = zip(*(one.costs for one in blocks), strict=True), [one.asked - one.fixed for one in budget.bounds]
    kept_B = within([one.score_B for one in blocks], [one.fewest for one in blocks], list(costs), room)
    return _plan(blocks, kept_B.split([len(one.score_B) for one in blocks]))


def _keep(to_keep: float, blocks: Sequence[Blocks]) -> tuple[Tensor, ...]:
    """Return the masks of the kept blocks, from one ranking of all, which keeps `fewest` of each layer at least."""
    scores = [one.score_B for one in blocks]
    price_B = torch.cat([torch.full((len(one.score_B),), one.price, dtype=torch.float64) for one in blocks])
    kept_B = affordable(torch.cat(scores), price_B, best_of_each(scores, [one.fewest for one in blocks]), to_keep)
    return torch.split(kept_B, list(map(len, scores)))


def _in_blocks(structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget) -> Pair[list[Blocks]]:
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
