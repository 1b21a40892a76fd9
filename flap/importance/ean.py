"""EAN, expert activation norm."""

from dataclasses import dataclass

from torch import Tensor

from flap.importance.experts import ExpertMetric, Routed


@dataclass(frozen=True)
class EAN(ExpertMetric):
    """Expert activation norm (EAN, Jaiswal et al. 2025, arXiv 2504.05586; the baseline of REAP's paper).

        score_e = Σ_t ‖f_e(x_t)‖₂

    t: the tokens that are sent to expert e. f_e(x_t): its output, without the router's weight. Higher = keep.

        python -m flap structure.experts=true metric=EAN
    """

    def score_experts(self, routed: Routed) -> Tensor:
        """Return score_E; higher = keep."""
        return routed.tokens_E * routed.mean.norm
