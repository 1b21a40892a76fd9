"""Allocation: use the scores of all units and a budget to choose the units that stay.

A unit is removed as a whole: a KV head with its query heads, a neuron of an MLP, or an expert. The
budget (`Budget`) says how many parameters to remove, and sets upper bounds on costs of the pruned
model, such as its bytes. A structure (a subclass of `Structure`) is an algorithm that chooses the
units that stay. It returns a plan (`PruningPlan`), which lists the kept units of each layer.
"""

from flap.method.allocation.adaptive import ALAM, ALMM
from flap.method.allocation.budget import Bound, Budget, Units, price
from flap.method.allocation.given import GivenPlan, packaged_plans
from flap.method.allocation.middle import Middle
from flap.method.allocation.plan import LayerPlan, PruningPlan
from flap.method.allocation.structure import Structure
from flap.method.allocation.targets import Biases, bounds_of_shapes
from flap.method.allocation.uniform import ULMM, ULUM, UniformLayers

__all__ = [
    "ALAM",
    "ALMM",
    "ULMM",
    "ULUM",
    "Biases",
    "Bound",
    "Budget",
    "GivenPlan",
    "LayerPlan",
    "Middle",
    "PruningPlan",
    "Structure",
    "UniformLayers",
    "Units",
    "bounds_of_shapes",
    "packaged_plans",
    "price",
]
