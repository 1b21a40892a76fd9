"""Bounds: the most that a pruned model may cost in bytes or another unit, by the widths of its blocks.

Legend: K kept units of a block, from 0 to all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flap.models import Pair

Widths = Sequence[Pair[int]]  # the units that each layer keeps; of a block with members, the units of one


@dataclass(frozen=True, eq=False)
class Bound:
    """The most that a pruned model may cost: `fixed` + Σ over all blocks of cost_K at the block's width."""

    target: str  # the name in the config, "bytes"
    asked: float  # the value there, in its unit
    fixed: float  # the cost of all that stays
    costs: tuple[Pair[Tensor], ...]  # cost_K of the blocks of each layer, which does not fall from one K to the next

    def cost(self, widths: Widths) -> float:
        """Return the cost of a model of these widths."""
        blocks = (block for layer in zip(self.costs, widths, strict=True) for block in zip(*layer, strict=True))
        return self.fixed + sum(float(cost_K[width]) for cost_K, width in blocks)

    @property
    def dense(self) -> float:
        """The cost of the dense model."""
        return self.fixed + sum(float(cost_K[-1]) for costs in self.costs for cost_K in costs)

    @property
    def excess(self) -> float:
        """How much the dense model costs beyond the most; at least 0."""
        return max(0.0, self.dense - self.asked)

    def values(self, widths: Widths) -> dict[str, float]:
        """Return what was asked, what the dense model has and what one of these widths has, in the target's unit."""
        return {"asked": self.asked, "dense": self.dense, "realised": self.cost(widths)}

    @property
    def prices(self) -> list[Pair[float]]:
        """What a unit of each block costs, on average over the block."""
        return [
            Pair(*(float(cost_K[-1] - cost_K[0]) / max(len(cost_K) - 1, 1) for cost_K in pair)) for pair in self.costs
        ]
