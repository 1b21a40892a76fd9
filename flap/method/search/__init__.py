"""The search: units are ranked by what their removal does to the predictions, in one walk."""

from flap.method.search.divergence import PlanDivergence
from flap.method.search.scoring import score_and_try
from flap.method.search.search import Search

__all__ = ["PlanDivergence", "Search", "score_and_try"]
