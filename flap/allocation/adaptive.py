"""AL-MM and AL-AM: the units of all layers are ranked together, on a common scale (FLAP, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flap.allocation.budget import Budget, Units
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.ranking import affordable, best_of_each, in_blocks
from flap.allocation.scale import Scaled
from flap.allocation.structure import ManualHeads, Measure, Structure
from flap.importance import Scores
from flap.models import Pair


@dataclass(frozen=True)
class ALAM(Scaled):
    """AL-AM (default): attention units and neurons of all layers in one ranking, each at its price in parameters."""

    def allocate(self, scores: Scores, budget: Budget, measure: Measure | None = None) -> PruningPlan:
        """Return the plan of one ranking of all units."""
        return one_ranking(self, self.on_one_scale(scores, budget), budget)


@dataclass(frozen=True)
class ALMM(Scaled, ManualHeads):
    """AL-MM: `remove_heads` from one ranking of all heads, the rest of the budget from one ranking of all neurons."""

    def allocate(self, scores: Scores, budget: Budget, measure: Measure | None = None) -> PruningPlan:
        """Return the plan of two rankings, of all attention units and of all neurons."""
        scaled = self.on_one_scale(scores, budget)
        heads, (blocks, members) = [layer.attention for layer in scaled], _score_blocks(scaled, budget, self.block)
        num_heads, unit_prices = sum(len(score_G) for score_G in heads), [1] * len(heads)
        kept_heads = _keep(heads, unit_prices, [self.min_heads] * len(heads), num_heads - self.units_to_remove(budget))
        kept_parameters = sum(
            int(kept_G.sum()) * layer.attention.price for kept_G, layer in zip(kept_heads, budget.layers, strict=True)
        )
        prices = [layer.mlp.price * self.block for layer in budget.layers]
        to_keep = budget.total - budget.to_remove - kept_parameters
        kept_blocks = _keep(blocks, prices, [self.fewest_blocks] * len(blocks), to_keep)
        return _plan(kept_heads, kept_blocks, members)


def one_ranking(structure: Structure, scaled: Sequence[Pair[Tensor]], budget: Budget) -> PruningPlan:
    """Return the plan of one ranking of all units of all layers, each at its price. scaled: scores on one scale."""
    heads, (blocks, members) = [layer.attention for layer in scaled], _score_blocks(scaled, budget, structure.block)
    prices = [layer.attention.price for layer in budget.layers]
    prices += [layer.mlp.price * structure.block for layer in budget.layers]
    fewest = [structure.min_heads] * len(heads) + [structure.fewest_blocks] * len(blocks)
    kept = _keep(heads + blocks, prices, fewest, budget.total - budget.to_remove)
    return _plan(kept[: len(heads)], kept[len(heads) :], members)


def _keep(units: list[Tensor], prices: list[int], fewest: list[int], to_keep: float) -> tuple[Tensor, ...]:
    """Return for each layer the mask of its kept units, at least `fewest` of them, from one ranking of all layers."""
    kept_U = affordable(torch.cat(units), _per_unit(prices, units), best_of_each(units, fewest), to_keep)
    return torch.split(kept_U, [len(u) for u in units])


def _score_blocks(scaled: Sequence[Pair[Tensor]], budget: Budget, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return for each layer score_B, the mean score of each block of neurons, and neurons_BN, the block's neurons."""
    mlps: list[Units] = [layer.mlp for layer in budget.layers]
    pairs = [in_blocks(layer.mlp, size, units.experts) for layer, units in zip(scaled, mlps, strict=True)]
    return [score_B for score_B, _ in pairs], [neurons_BN for _, neurons_BN in pairs]


def _per_unit(prices: list[int], units: list[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(u),), price) for price, u in zip(prices, units, strict=True)])


def _plan(heads: tuple[Tensor, ...], blocks: tuple[Tensor, ...], members: list[Tensor]) -> PruningPlan:
    triples = zip(heads, blocks, members, strict=True)
    return PruningPlan(
        tuple(
            LayerPlan(_sorted(head_G.nonzero()), _sorted(neurons_BN[block_B]))
            for head_G, block_B, neurons_BN in triples
        )
    )


def _sorted(indices: Tensor) -> tuple[int, ...]:
    return tuple(indices.flatten().sort().values.tolist())
