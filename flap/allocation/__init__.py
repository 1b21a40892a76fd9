"""Allocation: structures turn scores and a budget into a pruning plan, which says which units of each layer stay."""

from flap.allocation.adaptive import ALAM, ALMM
from flap.allocation.bounds import Bound
from flap.allocation.budget import Budget, Units, price
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.structure import Structure
from flap.allocation.targets import Biases, bounds_of_shapes
from flap.allocation.uniform import ULMM, ULUM, UniformLayers

__all__ = [
    "ALAM", "ALMM", "ULMM", "ULUM", "Biases", "Bound", "Budget", "LayerPlan", "PruningPlan", "Structure",
    "UniformLayers", "Units", "bounds_of_shapes", "price",
]  # fmt: skip
