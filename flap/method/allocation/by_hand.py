"""The number of heads that are removed, set by hand or the proportional share, and of which layers they are.

KV heads are removed in blocks. The size of a block is its number of query heads; a model may have several sizes.
Legend: B blocks of a layer, or of a size.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flap.config import require
from flap.method.allocation.budget import Budget, Units
from flap.method.allocation.structure import Structure


@dataclass(frozen=True)
class ManualHeads(Structure):
    """The base class of structures whose number of removed heads can be set by hand.

    An attention that cannot be divided into heads has no part in it.
    """

    remove_heads: int | None = (
        None  # query heads of the whole model, whole KV heads; None: proportional share
    )

    def check(self, budget: Budget) -> None:
        """Check the options as `Structure.check` does, and `remove_heads`.

        Raises:
            ValueError: an option, the ratio or `remove_heads` does not fit this model.
        """
        super().check(budget)
        if self.remove_heads is None:
            return
        for bound in budget.bounds:
            allowed = f"null with target.{bound.target}, which says how many are removed"
            require(False, "structure.remove_heads", self.remove_heads, allowed)
        feasible = self._feasible(budget)
        if self.remove_heads not in feasible:
            groups = sorted({one.queries for one in _divided(budget)})
            steps = " or ".join(str(group * self.multiple_of_heads) for group in groups)
            raise ValueError(
                f"structure.remove_heads={self.remove_heads}: at ratio={budget.ratio} this model allows "
                f"{feasible[0]} to {feasible[-1]}, in steps of {steps} "
                f"(query heads that share a KV head: {' or '.join(map(str, groups))})"
            )

    def heads_to_remove(self, budget: Budget) -> int:
        """Return the number of query heads to remove from the whole model."""
        if self.remove_heads is not None:
            return self.remove_heads
        group = math.gcd(*(one.queries for one in _divided(budget))) or 1
        heads = sum(one.queries * one.count for one in _divided(budget))
        proportional = group * round(budget.ratio * (heads // group))
        return min(self._feasible(budget), key=lambda number: abs(number - proportional))

    def blocks_to_remove(self, scores: Sequence[Tensor], budget: Budget) -> dict[int, int]:
        """Return how many blocks of each size are removed, so that the sum of size · score is the lowest.

        scores: score_B of the blocks of each layer that may be removed.
        """
        by_size = {
            size: torch.cat([scores[i] for i in layers])
            for size, layers in self.by_size(budget).items()
        }
        return _sums(by_size)[self.heads_to_remove(budget) - self._always(budget)]

    def by_size(self, budget: Budget) -> dict[int, list[int]]:
        """Return the layers with blocks of each size."""
        layers = defaultdict(list)
        for i, layer in enumerate(budget.layers):
            if not layer.attention.fixed:
                layers[layer.attention.queries * self.multiple_of_heads].append(i)
        return layers

    def _always(self, budget: Budget) -> int:
        """Return the number of query heads that fill no block, and are always removed."""
        return sum(
            layer.attention.queries * self.limits(layer).attention.counts[0]
            for layer in budget.layers
        )

    def _feasible(self, budget: Budget) -> list[int]:
        """Return the numbers of query heads whose removal lets neurons meet the budget, ascending.

        Where no number does so exactly, the nearest one.
        """
        layers = budget.layers
        always = self._always(budget)
        heads, neurons = zip(
            *([one.counts for one in self.limits(layer)] for layer in layers), strict=True
        )
        sizes = self.by_size(budget).items()
        free = {
            size: torch.zeros(sum(len(heads[i]) - 1 for i in indices)) for size, indices in sizes
        }
        counts = sorted(always + number for number in _sums(free))
        most, least = (
            sum(counts[i] * layer.mlp.price for counts, layer in zip(neurons, layers, strict=True))
            for i in (-1, 0)
        )
        prices = [one.price / one.queries for one in _divided(budget)] or [math.inf]
        fewest = (budget.to_remove - most) / min(prices)
        largest = (budget.to_remove - least) / max(prices)
        feasible = [count for count in counts if fewest <= count <= largest]
        return feasible or [min(counts, key=lambda count: max(fewest - count, count - largest))]


def _divided(budget: Budget) -> list[Units]:
    """Return the units of the attentions that can be divided into heads."""
    return [layer.attention for layer in budget.layers if not layer.attention.fixed]


def _sums(scores: Mapping[int, Tensor]) -> dict[int, dict[int, int]]:
    """Return each sum that sizes of blocks can have, with the numbers of blocks whose size · score add up to the least.

    scores: score_B of the blocks of each size, of which the lowest-scored ones are removed first.
    """
    best: dict[int, tuple[float, dict[int, int]]] = {0: (0.0, {})}
    for size, score_B in scores.items():
        scores_of = [0.0, *(size * score_B.double().sort().values.cumsum(0)).tolist()]
        before = best
        best = {}
        for total, (score, numbers) in before.items():
            for number, more in enumerate(scores_of):
                heads = total + number * size
                option = (score + more, numbers | {size: number})
                if heads not in best or option[0] < best[heads][0]:
                    best[heads] = option
    return {total: numbers for total, (_, numbers) in best.items()}
