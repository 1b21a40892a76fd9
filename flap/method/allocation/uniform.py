"""UL-UM and UL-MM: the same share of every layer is removed (FLAP, section 4.4)."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.method.allocation.budget import Budget, Units, lowest_ratio
from flap.method.allocation.by_hand import ManualHeads
from flap.method.allocation.plan import LayerPlan, PruningPlan
from flap.method.allocation.ranking import highest
from flap.method.allocation.structure import Structure
from flap.method.importance import Scores
from flap.models import Pair


class UniformLayers(Structure):
    """The base class of structures that remove the same share of every layer's parameters.

    The plan of a layer does not depend on the scores of later layers.
    """

    layer_by_layer: ClassVar[bool] = True

    @abstractmethod
    def removed_kv_heads(self, budget: Budget) -> list[int]:
        """Return the number of attention units to remove from each layer."""

    def quotas(self, budget: Budget) -> list[Pair[int]]:
        """Return the numbers of units that each layer keeps.

        What the removed attention units leave of a layer's budget is removed as neurons, to the nearest one (or block).
        """
        budget = lowest_ratio(budget, self.quotas)
        layers = budget.layers
        removed = self.removed_kv_heads(budget)
        limits = [self.limits(layer).mlp for layer in layers]
        # an MLP that a layer lacks has no price
        prices = [
            max(layer.mlp.price, 1) * one.size for layer, one in zip(layers, limits, strict=True)
        ]
        targets = [
            (self._left_for_neurons(layer, heads, budget) - one.counts[0] * layer.mlp.price) / price
            for layer, heads, one, price in zip(layers, removed, limits, prices, strict=True)
        ]
        blocks = _round_within_limits(targets, [len(one.counts) - 1 for one in limits], prices)
        return [
            Pair(layer.attention.count - heads, layer.mlp.count - one.counts[n])
            for layer, heads, one, n in zip(layers, removed, limits, blocks, strict=True)
        ]

    def _left_for_neurons(self, layer: Pair[Units], removed: int, budget: Budget) -> float:
        """Return the parameters of a layer's budget that the removed attention units leave to its neurons."""
        return (
            budget.ratio * (layer.attention.total + layer.mlp.total)
            - removed * layer.attention.price
        )

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        kept = zip(scores.layers, self.quotas(budget), budget.layers, strict=True)
        return PruningPlan(
            tuple(_plan(layer, quota, units.mlp.members) for layer, quota, units in kept)
        )

    def allocate_layer(self, index: int, scores: Pair[Tensor], budget: Budget) -> LayerPlan:
        """Return the highest-scored units of a layer, as many as its quota. Attention scores are sums over channels."""
        return _plan(scores, self.quotas(budget)[index], budget.layers[index].mlp.members)


def _plan(scores: Pair[Tensor], quota: Pair[int], members: int) -> LayerPlan:
    return LayerPlan(
        highest(scores.attention.sum(dim=1), quota.attention),
        highest(scores.mlp, quota.mlp, members),
    )


def _round_within_limits(targets: list[float], limits: list[int], prices: list[int]) -> list[int]:
    """Round the number of blocks to remove from each layer to a whole number from 0 to the layer's limit.

    Where a target is outside these limits, the other layers share the difference, in equal numbers of parameters.
    """
    counts = [min(max(target, 0.0), limit) for target, limit in zip(targets, limits, strict=True)]
    for (
        _
    ) in targets:  # each pass either removes the difference or brings one more layer to its limit
        missing = sum(
            (target - now) * price
            for target, now, price in zip(targets, counts, prices, strict=True)
        )
        free = [
            i
            for i, limit in enumerate(limits)
            if (counts[i] < limit if missing > 0 else counts[i] > 0)
        ]
        if not free or abs(missing) < 0.5 * min(prices):
            break
        for i in free:
            counts[i] = min(max(counts[i] + missing / len(free) / prices[i], 0.0), limits[i])
    return [round(count) for count in counts]


@dataclass(frozen=True)
class ULUM(UniformLayers):
    """UL-UM: the same ratio in every layer, for attention and MLP alike (FLAP, arXiv 2312.11983, section 4.4).

        every layer loses the lowest-scored ratio · G attention units, to the nearest one, and the rest as neurons

    G: the attention units of the layer.

        python -m flap structure=UL-UM
    """

    def removed_kv_heads(self, budget: Budget) -> list[int]:
        return [self._nearest_heads(layer, budget) for layer in budget.layers]

    def _nearest_heads(self, layer: Pair[Units], budget: Budget) -> int:
        """Return the count nearest to ratio · G with which the neurons can meet the layer's budget, or come nearest."""
        heads, neurons = (one.counts for one in self.limits(layer))
        least = neurons[0] * layer.mlp.price
        most = neurons[-1] * layer.mlp.price

        def deviation(n: int) -> float:
            left = self._left_for_neurons(layer, n, budget)
            return max(least - left, left - most, 0)

        return min(
            heads, key=lambda n: (deviation(n), abs(n - budget.ratio * layer.attention.count), n)
        )


@dataclass(frozen=True)
class ULMM(UniformLayers, ManualHeads):
    """UL-MM: heads spread evenly over the layers (FLAP, arXiv 2312.11983, section 4.4).

    every layer loses the lowest-scored remove_heads / layers query heads, and the rest of ratio · its parameters as
    neurons

    python -m flap structure=UL-MM structure.remove_heads=32
    """

    def removed_kv_heads(self, budget: Budget) -> list[int]:
        """Return the number of attention units to remove from each layer.

        In layers with as many query heads a KV head they differ by at most one (block), unless a layer has no more.
        """
        removable = [self.limits(layer).attention.counts for layer in budget.layers]
        removed = [one[0] for one in removable]
        levels = [
            2.0 * torch.arange(len(one) - 1) + 1 for one in removable
        ]  # the sum of them is that of squares
        sized = [
            level_B * layer.attention.queries
            for level_B, layer in zip(levels, budget.layers, strict=True)
        ]
        removed_blocks = self.blocks_to_remove(sized, budget)
        for size, layers in self.by_size(budget).items():
            blocks = _evenly(removed_blocks[size], [len(removable[i]) - 1 for i in layers])
            for i, number in zip(layers, blocks, strict=True):
                removed[i] = removable[i][number]
        return removed


def _evenly(number: int, limits: Sequence[int]) -> list[int]:
    """Return a number as the sum of one for each limit, none above it; others differ by at most 1."""
    level = max(
        level
        for level in range(max(limits) + 1)
        if sum(min(level, limit) for limit in limits) <= number
    )
    counts = [min(level, limit) for limit in limits]
    free = [i for i, limit in enumerate(limits) if limit > level]
    rest = number - sum(counts)
    for k, i in enumerate(free):
        counts[i] += (k + 1) * rest // len(free) - k * rest // len(free)
    return counts
