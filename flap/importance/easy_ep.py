"""EASY-EP, the weighted norms of an expert's outputs for the tokens that the experts turn."""

from dataclasses import dataclass

from torch import Tensor

from flap.importance.experts import ExpertMetric, Routed


@dataclass(frozen=True)
class EasyEP(ExpertMetric):
    """Output-aware importance times the token's contribution (EASY-EP, Dong et al. 2025, arXiv 2504.06792).

        score_e = Σ_t g_e(t) · ‖f_e(x_t)‖₂ · s_t,      s_t = 1 - cos(h_t, h_t + Σ_k g_k(t) f_k(x_t))

    t, g, f and `renormalise` as in `REAP`. h_t: the residual stream before the MLP; where experts work in a latent
    space (Nemotron-H), what enters them. Σ_k g_k f_k: what the token's experts add to it, without shared experts and
    constants, and before a family scales or normalises it (Granite). Higher = keep.

        python -m flap structure.experts=true metric=EASY-EP
    """

    renormalise: bool = False  # the router's weights of a token add up to 1

    def score_experts(self, routed: Routed) -> Tensor:
        """Return score_E; higher = keep."""
        mean = routed.mean.shared_shifted if self.renormalise else routed.mean.shifted
        return routed.tokens_E * mean
