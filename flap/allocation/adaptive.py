"""AL-MM and AL-AM: units compete over all layers on a common scale (FLAP, section 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flap.allocation.budget import Budget
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.ranking import affordable, best_of_each, in_blocks
from flap.allocation.scale import Scaled
from flap.allocation.structure import ManualHeads, Structure
from flap.importance import Scores


@dataclass(frozen=True)
class ALAM(Scaled):
    """AL-AM (default): attention units and neurons of all layers in one ranking, each at its price in parameters."""

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        return one_ranking(self, self.of_heads(scores, budget), self.of_neurons(scores, budget), budget)


@dataclass(frozen=True)
class ALMM(Scaled, ManualHeads):
    """AL-MM: `remove_heads` from one ranking of all heads, the rest of the budget from one ranking of all neurons."""

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        heads = self.of_heads(scores, budget)
        blocks, members = _of_blocks(self.of_neurons(scores, budget), budget, self.block)
        num_heads, once = sum(len(score_G) for score_G in heads), [1] * len(heads)
        kept_heads = _keep(heads, once, [self.min_heads] * len(heads), num_heads - self.units_to_remove(budget))
        spent = sum(int(k.sum()) * layer.kv_head_price for k, layer in zip(kept_heads, budget.layers, strict=True))
        prices = [layer.neuron_price * self.block for layer in budget.layers]
        to_keep = budget.total - budget.to_remove - spent
        kept_blocks = _keep(blocks, prices, [self.fewest_blocks] * len(blocks), to_keep)
        return _plan(kept_heads, kept_blocks, members)


def one_ranking(structure: Structure, heads: list[Tensor], neurons: list[Tensor], budget: Budget) -> PruningPlan:
    """The units that stay when score_G and score_I of all layers are on one scale, each unit at its price."""
    blocks, members = _of_blocks(neurons, budget, structure.block)
    prices = [layer.kv_head_price for layer in budget.layers]
    prices += [layer.neuron_price * structure.block for layer in budget.layers]
    fewest = [structure.min_heads] * len(heads) + [structure.fewest_blocks] * len(blocks)
    kept = _keep(heads + blocks, prices, fewest, budget.total - budget.to_remove)
    return _plan(kept[: len(heads)], kept[len(heads) :], members)


def _keep(units: list[Tensor], prices: list[int], fewest: list[int], to_keep: float) -> tuple[Tensor, ...]:
    kept_U = affordable(torch.cat(units), _per_unit(prices, units), best_of_each(units, fewest), to_keep)
    return torch.split(kept_U, [len(u) for u in units])


def _of_blocks(neurons: list[Tensor], budget: Budget, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """score_B of each layer (the mean over a block's neurons) and neurons_BN, which neurons those are."""
    layers = zip(neurons, budget.layers, strict=True)
    pairs = [in_blocks(score_I, size, layer.experts) for score_I, layer in layers]
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
