"""AL-MM and AL-AM: units compete over all layers on standardised scores (FLAP, section 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flap.allocation.budget import Budget
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.ranking import affordable, best_of_each, standardise
from flap.allocation.structure import ManualHeads, Structure
from flap.importance import Scores


@dataclass(frozen=True)
class ALAM(Structure):
    """AL-AM (default): attention units and neurons of all layers in one ranking, each at its price in parameters."""

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        heads, neurons = _standardised(scores)
        units = heads + neurons
        prices = [layer.kv_head_price for layer in budget.layers] + [layer.neuron_price for layer in budget.layers]
        kept = _keep(units, prices, budget.total - budget.to_remove)
        return _plan(kept[: len(heads)], kept[len(heads) :])


@dataclass(frozen=True)
class ALMM(ManualHeads):
    """AL-MM: `remove_heads` from one ranking of all heads, the rest of the budget from one ranking of all neurons."""

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        heads, neurons = _standardised(scores)
        num_heads = sum(len(score_G) for score_G in heads)
        kept_heads = _keep(heads, [1] * len(heads), num_heads - self.units_to_remove(budget))
        spent = sum(int(k.sum()) * layer.kv_head_price for k, layer in zip(kept_heads, budget.layers, strict=True))
        to_keep = budget.total - budget.to_remove - spent
        kept_neurons = _keep(neurons, [layer.neuron_price for layer in budget.layers], to_keep)
        return _plan(kept_heads, kept_neurons)


def _keep(units: list[Tensor], prices: list[int], to_keep: float) -> tuple[Tensor, ...]:
    kept_U = affordable(torch.cat(units), _per_unit(prices, units), best_of_each(units), to_keep)
    return torch.split(kept_U, [len(u) for u in units])


def _standardised(scores: Scores) -> tuple[list[Tensor], list[Tensor]]:
    """score_G of each layer (mean over a unit's standardised channels) and score_I of each layer."""
    heads = [standardise(score_GC).mean(dim=1) for score_GC in scores.kv_heads]
    return heads, [standardise(score_I) for score_I in scores.neurons]


def _per_unit(prices: list[int], units: list[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(u),), price) for price, u in zip(prices, units, strict=True)])


def _plan(heads: tuple[Tensor, ...], neurons: tuple[Tensor, ...]) -> PruningPlan:
    pairs = zip(heads, neurons, strict=True)
    return PruningPlan(tuple(LayerPlan(_indices(head), _indices(neuron)) for head, neuron in pairs))


def _indices(mask_U: Tensor) -> tuple[int, ...]:
    return tuple(mask_U.nonzero().flatten().tolist())
