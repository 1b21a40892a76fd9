"""MoNE, how often an expert is chosen times how much its output varies."""

from dataclasses import dataclass

from torch import Tensor

from flap.importance.experts import ExpertMetric, Routed


@dataclass(frozen=True)
class MoNE(ExpertMetric):
    """Access frequency times output variance (MoNE, Zhang et al. 2025, arXiv 2507.00390).

        score_e = R_e / Σ_k R_k · √(Σ_o var_o(f_e))

    R_e: the tokens that are sent to expert e. var_o(f_e): the sample variance of channel o of its output over them.
    Higher = keep. The authors' code has the mean
    weight of the router in the place of the frequency.

        python -m flap structure.experts=true metric=MoNE
    """

    def score_experts(self, routed: Routed) -> Tensor:
        """Return score_E; higher = keep."""
        return routed.tokens_E / routed.tokens_E.sum().clamp(min=1) * routed.variance_E.sqrt()
