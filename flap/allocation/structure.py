"""What every structure has in common: from scores and a budget to a plan, and the rules of `remove_heads`."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from flap.allocation.budget import Budget
from flap.allocation.plan import PruningPlan
from flap.importance import Scores


@dataclass(frozen=True)
class Structure(ABC):
    """Decides which units stay. Knows scores and a budget, nothing of models, files or configuration."""

    @abstractmethod
    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """The plan whose kept parameters stand within one unit of (1 - ratio) · total; no layer is emptied."""

    def check(self, budget: Budget) -> None:  # noqa: B027 - most structures fit every budget
        """Raises: ValueError: an option of the structure does not fit this budget."""


@dataclass(frozen=True)
class ManualHeads(Structure):
    """A structure whose attention share is set by hand.

    remove_heads: query heads to remove from the whole model, a multiple of the query heads a KV head serves;
    None: the proportional share.
    """

    remove_heads: int | None = None

    def check(self, budget: Budget) -> None:
        if self.remove_heads is None:
            return
        layers, group = budget.layers, budget.layers[0].queries_per_group
        priciest = max(layer.kv_head_price for layer in layers)
        spare = sum(layer.mlp - layer.neuron_price for layer in layers)
        least = max(0, math.ceil((budget.to_remove - spare) / priciest))
        most = min(self.most_units(budget), int(budget.to_remove // priciest))
        if self.remove_heads % group or not least <= self.remove_heads // group <= most:
            multiple = f" that is a multiple of {group} (query heads a KV head)" if group > 1 else ""
            raise ValueError(
                f"structure.remove_heads={self.remove_heads}: at ratio={budget.ratio} this model allows "
                f"{least * group} to {most * group}, a number{multiple}"
            )

    def most_units(self, budget: Budget) -> int:
        """Attention units that can leave while every layer keeps one."""
        return sum(layer.kv_heads - 1 for layer in budget.layers)

    def units_to_remove(self, budget: Budget) -> int:
        """Attention units (KV heads) that leave, over the whole model."""
        if self.remove_heads is not None:
            return self.remove_heads // budget.layers[0].queries_per_group
        proportional = round(budget.ratio * sum(layer.kv_heads for layer in budget.layers))
        spare = sum(layer.mlp - layer.neuron_price for layer in budget.layers)
        priciest = max(layer.kv_head_price for layer in budget.layers)
        least = math.ceil((budget.to_remove - spare) / priciest)
        return min(max(proportional, least), self.most_units(budget), int(budget.to_remove // priciest))
