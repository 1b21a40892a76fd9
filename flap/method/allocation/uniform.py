"""The structures UL-UM and UL-MM, which remove the same share of every layer's parameters.

Source: FLAP, arXiv 2312.11983, section 4.4.

An attention unit is a KV head with its query heads. A block is a group of attention units, or of
neurons, that are removed together. With structure.experts=true, whole experts are removed instead
of neurons, and every statement about neurons in this module applies to experts. A plan lists the
attention units and neurons that stay. The budget says which share of the parameters to remove
(`ratio`).

Legend: G: attention units of a layer · B: blocks of attention units.
"""

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
    """Base class of structures that remove the same share of every layer's parameters.

    The choice of the units to remove from a layer does not depend on the scores of other layers.
    """

    layer_by_layer: ClassVar[bool] = True

    @abstractmethod
    def removed_kv_heads(self, budget: Budget) -> list[int]:
        """Return the number of attention units to remove from each layer."""

    def quotas(self, budget: Budget) -> list[Pair[int]]:
        """Return the numbers of attention units and of neurons that each layer keeps.

        Every layer has to lose the same share of its parameters. `removed_kv_heads` says how many
        attention units are removed. The remaining parameters of this share are removed by removing
        neurons. The number of removed neurons is rounded to whole neurons, or to whole blocks of
        neurons.
        """
        budget = lowest_ratio(budget, self.quotas)
        removed_heads = self.removed_kv_heads(budget)
        limits = [self.limits(layer).mlp for layer in budget.layers]

        # 1. for each layer, compute the unrounded number of blocks of neurons that it has to lose
        targets = []
        prices = []
        for layer, heads, limit in zip(budget.layers, removed_heads, limits, strict=True):
            # number of parameters of the neurons that do not fill a block and are always removed
            remainder = limit.counts[0] * layer.mlp.price
            # number of parameters of a block; `layer.mlp.price` is 0 in a layer without an MLP
            price = max(layer.mlp.price, 1) * limit.size
            in_blocks = self._left_for_neurons(layer, heads, budget) - remainder
            targets.append(in_blocks / price)
            prices.append(price)

        # 2. round these numbers of blocks to whole numbers within the limits of each layer
        most = [len(limit.counts) - 1 for limit in limits]
        blocks = _round_within_limits(targets, most, prices)

        quotas = []
        for i, layer in enumerate(budget.layers):
            removed_neurons = limits[i].counts[blocks[i]]
            heads = layer.attention.count - removed_heads[i]
            neurons = layer.mlp.count - removed_neurons
            quotas.append(Pair(heads, neurons))
        return quotas

    def _left_for_neurons(self, layer: Pair[Units], removed: int, budget: Budget) -> float:
        """Return the number of parameters that a layer has to lose by the removal of neurons.

        removed: the number of attention units that are removed from the layer.
        """
        of_layer = budget.ratio * (layer.attention.total + layer.mlp.total)
        return of_layer - removed * layer.attention.price

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        quotas = self.quotas(budget)
        layers = []
        for layer, quota, units in zip(scores.layers, quotas, budget.layers, strict=True):
            layers.append(_best_units(layer, quota, units.mlp.members))
        return PruningPlan(tuple(layers))

    def allocate_layer(self, index: int, scores: Pair[Tensor], budget: Budget) -> LayerPlan:
        """Return the plan of one layer from its scores."""
        quota = self.quotas(budget)[index]
        return _best_units(scores, quota, budget.layers[index].mlp.members)


def _best_units(scores: Pair[Tensor], quota: Pair[int], members: int) -> LayerPlan:
    """Return the plan that keeps the highest-scored units of a layer.

    The score of an attention unit is the sum of the scores of its channels.

    quota: the number of attention units and the number of neurons or experts that the layer keeps.
    """
    heads = highest(scores.attention.sum(dim=1), quota.attention)
    neurons = highest(scores.mlp, quota.mlp, members)
    return LayerPlan(heads, neurons)


def _round_within_limits(targets: list[float], limits: list[int], prices: list[int]) -> list[int]:
    """Round the number of blocks that each layer loses to a whole number from 0 to a limit.

    Each layer has its own limit. If the unrounded number of a layer is below 0 or above the layer's
    limit, it is set to 0 or to the limit. This changes the total number of removed parameters. To
    restore the total, the difference is divided evenly among the layers whose numbers can still
    change.

    targets: the unrounded number of blocks to remove from each layer.
    limits: the largest possible number of blocks to remove from each layer.
    prices: the number of parameters of one block of each layer.
    """
    counts = []
    for target, limit in zip(targets, limits, strict=True):
        counts.append(min(max(target, 0.0), limit))

    # Each iteration computes how many more parameters have to be removed (`missing`, negative if
    # too many are removed), and divides this number evenly among the layers that can still change.
    # After an iteration, either no parameters are missing, or at least one more layer has reached 0
    # or its limit.
    for _ in targets:
        missing = 0.0
        for target, count, price in zip(targets, counts, prices, strict=True):
            missing += (target - count) * price
        if missing > 0:
            free = [i for i, limit in enumerate(limits) if counts[i] < limit]
        else:
            free = [i for i, count in enumerate(counts) if count > 0]
        if not free or abs(missing) < 0.5 * min(prices):
            break

        share = missing / len(free)
        for i in free:
            count = counts[i] + share / prices[i]
            counts[i] = min(max(count, 0.0), limits[i])
    return [round(count) for count in counts]


@dataclass(frozen=True)
class ULUM(UniformLayers):
    """UL-UM: the same ratio for every attention and MLP (FLAP, arXiv 2312.11983, section 4.4).

        every layer loses its round(ratio · G) lowest-scored attention units,
        and then neurons, until it has lost ratio · (number of its parameters)

    G: the number of attention units of the layer.

        python -m flap structure=UL-UM
    """

    def removed_kv_heads(self, budget: Budget) -> list[int]:
        return [self._nearest_heads(layer, budget) for layer in budget.layers]

    def _nearest_heads(self, layer: Pair[Units], budget: Budget) -> int:
        """Return the number of attention units to remove from a layer.

        A number is possible if the layer can lose the share `ratio` of its parameters by losing
        this number of attention units and a suitable number of neurons. Return the possible number
        that is nearest to ratio · G. If no number is possible, return the number with which the
        layer comes nearest to this share.
        """
        heads, neurons = (limit.counts for limit in self.limits(layer))
        least = neurons[0] * layer.mlp.price
        most = neurons[-1] * layer.mlp.price
        wanted = budget.ratio * layer.attention.count

        def preference(count: int) -> tuple[float, float, int]:
            left = self._left_for_neurons(layer, count, budget)
            missed = max(least - left, left - most, 0)
            return missed, abs(count - wanted), count

        return min(heads, key=preference)


@dataclass(frozen=True)
class ULMM(UniformLayers, ManualHeads):
    """UL-MM: removed heads spread evenly over layers (FLAP, arXiv 2312.11983, section 4.4).

        every layer loses its remove_heads / (number of layers) lowest-scored query heads,
        and then neurons, until it has lost ratio · (number of its parameters)

    All layers together lose `remove_heads` query heads.

        python -m flap structure=UL-MM structure.remove_heads=32
    """

    def removed_kv_heads(self, budget: Budget) -> list[int]:
        """Return the number of attention units to remove from each layer.

        Layers with the same number of query heads per KV head lose equal numbers of blocks, or
        numbers that differ by one block. A layer loses fewer blocks only if its limits
        (`Structure.limits`) allow no more.
        """
        removable = [self.limits(layer).attention.counts for layer in budget.layers]

        # 1. choose how many blocks of each size (number of query heads) are removed from the whole
        # model. The n-th removed block of a layer gets the cost (2 n - 1) · queries, where
        # `queries` is the number of query heads per KV head. The method `self.blocks_to_remove`
        # takes these costs as scores, and multiplies each score by the size of the block. So the
        # sum over the first n removed blocks of a layer is proportional to the square of their
        # number of query heads. The total over all layers is lowest if all layers lose the same
        # number of query heads.
        costs = []
        for layer, counts in zip(budget.layers, removable, strict=True):
            cost_B = 2.0 * torch.arange(len(counts) - 1) + 1
            costs.append(cost_B * layer.attention.queries)
        blocks_to_remove = self.blocks_to_remove(costs, budget)

        # 2. spread the removed blocks of each size evenly over the layers that have blocks of this
        # size
        removed = [counts[0] for counts in removable]
        for size, layers in self.by_size(budget).items():
            most = [len(removable[i]) - 1 for i in layers]
            blocks_of_layers = _evenly(blocks_to_remove[size], most)
            for i, blocks in zip(layers, blocks_of_layers, strict=True):
                removed[i] = removable[i][blocks]
        return removed


def _evenly(number: int, limits: Sequence[int]) -> list[int]:
    """Divide a number into integer parts, one for each limit, so that no part exceeds its limit.

    Parts below their limits differ by at most 1.
    """

    def total(level: int) -> int:
        return sum(min(level, limit) for limit in limits)

    # 1. set each part to the minimum of a common level and the part's limit, with the highest level
    # for which the sum of all parts is at most `number`
    levels = range(max(limits) + 1)
    level = max(level for level in levels if total(level) <= number)
    counts = [min(level, limit) for limit in limits]

    # 2. add the rest of `number` to the parts that are below their limits: spread it evenly, and
    # add at most 1 to each part
    free = [i for i, limit in enumerate(limits) if limit > level]
    rest = number - sum(counts)
    added = 0
    for k, i in enumerate(free, start=1):
        added_until_here = k * rest // len(free)
        counts[i] += added_until_here - added
        added = added_until_here
    return counts
