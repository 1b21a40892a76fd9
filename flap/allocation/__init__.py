"""From scores and a budget to a plan: which units of which layer stay."""

from flap.allocation.adaptive import ALAM, ALMM
from flap.allocation.budget import Budget, price
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.refine import corrected, neighbours
from flap.allocation.scale import Scaled
from flap.allocation.search import Search, Trial
from flap.allocation.structure import Structure
from flap.allocation.uniform import ULMM, ULUM, UniformLayers, keep_quotas

__all__ = [
    "ALAM", "ALMM", "ULMM", "ULUM", "Budget", "LayerPlan", "PruningPlan", "Scaled", "Search", "Structure", "Trial",
    "UniformLayers", "corrected", "keep_quotas", "neighbours", "price",
]  # fmt: skip
