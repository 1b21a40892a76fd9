"""Frequency: how often an expert is chosen."""

from dataclasses import dataclass

from torch import Tensor

from flap.importance.experts import ExpertMetric, Routed


@dataclass(frozen=True)
class Frequency(ExpertMetric):
    """The share of the router's choices: no paper's method, but a baseline of all that score experts.

        score_e = R_e / Σ_k R_k

    R_e: the tokens that are sent to expert e. Higher = keep.

        python -m flap structure.experts=true metric=frequency
    """

    def score_experts(self, routed: Routed) -> Tensor:
        """Return score_E; higher = keep."""
        return routed.tokens_E / routed.tokens_E.sum().clamp(min=1)
