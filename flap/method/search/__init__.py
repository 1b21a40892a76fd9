"""structure=search, which ranks units by the measured effect of their removal.

A unit is a KV head with its query heads, a neuron, or an expert. The effect is how far the pruned
model's predictions diverge from the dense model's predictions.
"""

from flap.method.search.divergence import PlanDivergence
from flap.method.search.scoring import score_and_try
from flap.method.search.search import Search

__all__ = ["PlanDivergence", "Search", "score_and_try"]
