"""AL-MM and AL-AM: the units of all layers are ranked together, on a common scale (FLAP, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flap.allocation.bounds import Bound
from flap.allocation.budget import Budget, lowest_ratio
from flap.allocation.by_hand import ManualHeads
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.ranking import affordable, best_of_each, in_blocks, within
from flap.allocation.scale import Scaled
from flap.allocation.structure import Structure
from flap.importance import Scores
from flap.models import Pair


@dataclass(frozen=True)
class ALAM(Scaled):
    """AL-AM (default): attention units and neurons of all layers in one ranking, each at its price in parameters."""

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return the plan of one ranking of all units."""
        return one_ranking(self, self.on_one_scale(scores, budget), budget)


@dataclass(frozen=True)
class ALMM(Scaled, ManualHeads):
    """AL-MM: `remove_heads` from one ranking of all heads, the rest of the budget from one ranking of all neurons."""

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return the plan of two rankings, of all attention units and of all neurons."""
        budget = lowest_ratio(budget, lambda one: one.widths(self.allocate(scores, one)))
        heads, neurons = _in_blocks(self, self.on_one_scale(scores, budget), budget)
        kept_heads = self._kept_heads(heads, budget)
        kept_parameters = sum(int(kept_B.sum()) * price for kept_B, price in zip(kept_heads, heads.prices, strict=True))
        kept_neurons = _keep(budget.total - budget.to_remove - kept_parameters, neurons)
        return _plan(heads, kept_heads, neurons, kept_neurons)

    def _kept_heads(self, heads: "Blocks", budget: Budget) -> list[Tensor]:
        """Return the mask of the kept blocks of each layer, from one ranking of all blocks of a size."""
        may_leave = [score_B[least:] for score_B, least in zip(heads.scores, heads.fewest, strict=True)]
        leaving = self.blocks_to_remove(may_leave, budget)
        kept = [torch.ones(len(score_B), dtype=torch.bool) for score_B in heads.scores]
        for size, layers in self.by_size(budget).items():
            alike = heads.of(layers)
            for i, kept_B in zip(layers, _keep(sum(map(len, alike.scores)) - leaving[size], alike), strict=True):
                kept[i] = kept_B
        return kept


@dataclass(frozen=True)
class Blocks:
    """The attention units, or the neurons, of all layers in blocks that are kept or removed together.

    Of each layer: scores_B, the units of each block as units_BN, the price of a block, and how many stay at least.
    """

    scores: list[Tensor]
    units: list[Tensor]
    prices: list[int]
    fewest: list[int]

    def of(self, layers: Sequence[int]) -> "Blocks":
        """Return the blocks of some layers, each at a price of 1."""
        scores, units = ([values[i] for i in layers] for values in (self.scores, self.units))
        return Blocks(scores, units, [1] * len(layers), [self.fewest[i] for i in layers])


def one_ranking(structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget) -> PruningPlan:
    """Return the plan of one ranking of all units of all layers, each at its price. scaled: scores on one scale."""
    heads, neurons = _in_blocks(structure, scaled, budget)
    if budget.bounds:
        kept = _keep_within(budget.bounds, list(map(structure.sizes_in, budget.layers)), heads, neurons)
    else:
        kept = _keep(budget.total - budget.to_remove, heads, neurons)
    return _plan(heads, kept[: len(scaled)], neurons, kept[len(scaled) :])


def _keep_within(
    bounds: Sequence[Bound], sizes: Sequence[Pair[int]], heads: Blocks, neurons: Blocks
) -> tuple[Tensor, ...]:
    """Return the mask of the kept blocks of each layer, from one ranking of all layers, that are within all bounds."""
    scores = heads.scores + neurons.scores
    costs = [
        [pair[which][:: size[which]] for which in range(2) for pair, size in zip(bound.costs, sizes, strict=True)]
        for bound in bounds
    ]
    kept_B = within(scores, heads.fewest + neurons.fewest, costs, [bound.most - bound.fixed for bound in bounds])
    return torch.split(kept_B, [len(score_B) for score_B in scores])


def _keep(to_keep: float, *blocks: Blocks) -> tuple[Tensor, ...]:
    """Return the mask of the kept blocks of each layer, at least `fewest` of them, from one ranking of all layers."""
    scores, prices, fewest = (
        [value for one in blocks for value in getattr(one, name)] for name in ("scores", "prices", "fewest")
    )
    price_B = torch.cat([torch.full((len(score_B),), price) for score_B, price in zip(scores, prices, strict=True)])
    kept_B = affordable(torch.cat(scores), price_B, best_of_each(scores, fewest), to_keep)
    return torch.split(kept_B, [len(score_B) for score_B in scores])


def _in_blocks(structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget) -> Pair[Blocks]:
    """Return the blocks of attention units and those of neurons. The score of a block is the mean of its units."""

    sizes = [structure.sizes_in(layer) for layer in budget.layers]

    def blocks(which: int) -> Blocks:
        layers = [(layer[which], pair[which]) for layer, pair in zip(budget.layers, sizes, strict=True)]
        pairs = [in_blocks(one[which], size, units.experts) for one, (units, size) in zip(scaled, layers, strict=True)]
        scores, members = map(list, zip(*pairs, strict=True))
        prices = [units.price * size for units, size in layers]
        return Blocks(scores, members, prices, [structure.fewest_blocks(layer)[which] for layer in budget.layers])

    return Pair(blocks(0), blocks(1))


def _plan(heads: Blocks, kept_heads: Sequence[Tensor], neurons: Blocks, kept_neurons: Sequence[Tensor]) -> PruningPlan:
    layers = zip(heads.units, kept_heads, neurons.units, kept_neurons, strict=True)
    return PruningPlan(
        tuple(
            LayerPlan(_sorted(heads_BN[head_B]), _sorted(neurons_BN[neuron_B]))
            for heads_BN, head_B, neurons_BN, neuron_B in layers
        )
    )


def _sorted(indices: Tensor) -> tuple[int, ...]:
    return tuple(indices.flatten().sort().values.tolist())
