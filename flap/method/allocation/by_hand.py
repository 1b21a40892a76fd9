"""The base class of structures whose number of removed heads can be set in the config.

KV heads are removed together with their query heads, in blocks of `multiple_of_heads` KV heads. The
size of a block is its number of query heads. In some models, blocks of different layers have
different sizes. The budget says which share of the parameters to remove (`ratio`). A structure is
an algorithm that chooses the heads and neurons that stay.

Legend: The suffix B is the axis of blocks. They are the blocks of one layer, or all blocks of one
size in the whole model.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flap.config import require
from flap.method.allocation.budget import Budget, Units
from flap.method.allocation.structure import Structure


@dataclass(frozen=True)
class ManualHeads(Structure):
    """Base class of structures whose number of removed heads can be set in the config.

    The attention of a layer is not pruned if it cannot be divided into heads.
    """

    # Number of query heads to remove from the whole model. Each KV head is removed together with
    # all of its query heads. If this option is None, about the share `ratio` of all query heads is
    # removed.
    remove_heads: int | None = None

    def check(self, budget: Budget) -> None:
        """Check all options, including `remove_heads`.

        Raises:
            ValueError: an option, the ratio or `remove_heads` does not fit this model, or
                `remove_heads` is set together with a target (an upper limit on the model's size).
        """
        super().check(budget)
        if self.remove_heads is None:
            return
        for bound in budget.bounds:
            allowed = f"null with target.{bound.target}, which decides how many heads are removed"
            require(False, "structure.remove_heads", self.remove_heads, allowed)
        feasible = self._feasible(budget)
        if self.remove_heads not in feasible:
            fewest = feasible[0]
            most = feasible[-1]
            groups = sorted({units.queries for units in _prunable_heads(budget)})
            steps = " or ".join(str(group * self.multiple_of_heads) for group in groups)
            sharing = " or ".join(map(str, groups))
            raise ValueError(
                f"structure.remove_heads={self.remove_heads}: at ratio={budget.ratio} this model "
                f"allows {fewest} to {most}, in steps of {steps} "
                f"(query heads that share a KV head: {sharing})"
            )

    def heads_to_remove(self, budget: Budget) -> int:
        """Return the number of query heads to remove from the whole model.

        If `remove_heads` is None, the number is as near to the share `ratio` of all query heads as
        the budget allows.
        """
        if self.remove_heads is not None:
            return self.remove_heads
        divided = _prunable_heads(budget)
        group = math.gcd(*(units.queries for units in divided)) or 1
        heads = sum(units.queries * units.count for units in divided)
        proportional = group * round(budget.ratio * (heads // group))
        return min(self._feasible(budget), key=lambda number: abs(number - proportional))

    def blocks_to_remove(self, scores: Sequence[Tensor], budget: Budget) -> dict[int, int]:
        """Return a dict from each size of blocks to the number of blocks of this size to remove.

        Some query heads are always removed, because they do not fill a block (`_always`). Together
        with these heads, the removed blocks have `heads_to_remove` query heads. If several choices
        of blocks meet this condition, the choice with the lowest sum of size · score over all
        removed blocks is returned.

        scores: for each layer, the scores of the blocks that may be removed (score_B).
        """
        by_size = {}
        for size, layers in self.by_size(budget).items():
            by_size[size] = torch.cat([scores[i] for i in layers])
        in_blocks = self.heads_to_remove(budget) - self._always(budget)
        return _sums(by_size)[in_blocks]

    def by_size(self, budget: Budget) -> dict[int, list[int]]:
        """Return, for each size of blocks, the indices of the layers with blocks of this size."""
        layers = defaultdict(list)
        for i, layer in enumerate(budget.layers):
            if not layer.attention.fixed:
                layers[layer.attention.queries * self.multiple_of_heads].append(i)
        return layers

    def _always(self, budget: Budget) -> int:
        """Return the number of query heads that are always removed.

        A layer keeps only whole blocks. If the number of query heads of a layer is not a multiple
        of the size of its blocks, the heads that do not fill a block are always removed.
        """
        heads = 0
        for layer in budget.layers:
            heads += layer.attention.queries * self.limits(layer).attention.counts[0]
        return heads

    def _feasible(self, budget: Budget) -> list[int]:
        """Return the possible numbers of query heads to remove, ascending.

        A number is possible if the removal of this number of heads and of a suitable number of
        neurons can meet the budget. If no number is possible, return only the number that comes
        nearest to the budget.
        """
        limits = [self.limits(layer) for layer in budget.layers]

        # The numbers of query heads that can be removed in whole blocks. They do not depend on the
        # scores of the blocks, so all scores are 0 here.
        free = {}
        for size, layers in self.by_size(budget).items():
            blocks = sum(len(limits[i].attention.counts) - 1 for i in layers)
            free[size] = torch.zeros(blocks)
        always = self._always(budget)
        counts = sorted(always + number for number in _sums(free))

        # the smallest and the largest number of removed heads with which the budget can be met
        most = 0
        least = 0
        for layer, limit in zip(budget.layers, limits, strict=True):
            price = layer.mlp.price
            most += limit.mlp.counts[-1] * price
            least += limit.mlp.counts[0] * price
        prices = [units.price / units.queries for units in _prunable_heads(budget)] or [math.inf]
        fewest = (budget.to_remove - most) / min(prices)
        largest = (budget.to_remove - least) / max(prices)

        feasible = [count for count in counts if fewest <= count <= largest]
        if feasible:
            return feasible
        return [min(counts, key=lambda count: max(fewest - count, count - largest))]


def _prunable_heads(budget: Budget) -> list[Units]:
    return [layer.attention for layer in budget.layers if not layer.attention.fixed]


class _Choice(NamedTuple):
    score: float  # for all removed blocks, the sum of the block's size times the block's score
    # a dict from each size of blocks to the number of removed blocks of this size
    blocks: dict[int, int]


def _sums(scores: Mapping[int, Tensor]) -> dict[int, dict[int, int]]:
    """Return a dict from each possible number of removed query heads to the best choice of blocks.

    A choice is a dict from each size of blocks to the number of removed blocks of this size. Among
    blocks of one size, the lowest-scored blocks are removed first. If several choices remove the
    same number of heads, the best choice is the one with the lowest sum of size · score over all
    removed blocks.

    scores: a dict from each size of blocks to the scores of all blocks of this size (score_B).
    """
    best = {0: _Choice(0.0, {})}
    for size, score_B in scores.items():
        lowest_first_B, _ = score_B.double().sort()
        cost_B = size * lowest_first_B.cumsum(0)
        costs = [0.0, *cost_B.tolist()]  # costs of removing 0, 1, 2, … blocks
        smaller = best
        best = {}
        for heads, choice in smaller.items():
            for blocks, cost in enumerate(costs):
                option = _Choice(choice.score + cost, choice.blocks | {size: blocks})
                total = heads + blocks * size
                if total not in best or option.score < best[total].score:
                    best[total] = option
    return {heads: choice.blocks for heads, choice in best.items()}
