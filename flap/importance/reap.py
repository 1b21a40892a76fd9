"""REAP, router-weighted expert activation pruning."""

from dataclasses import dataclass

from torch import Tensor

from flap.importance.experts import ExpertMetric, Routed


@dataclass(frozen=True)
class REAP(ExpertMetric):
    """Router-weighted expert activation pruning (REAP, Lasby et al. 2025, arXiv 2510.13999).

        score_e = mean_t g_e(t) · ‖f_e(x_t)‖₂

    t: the tokens that are sent to expert e. f_e(x_t): its output. g_e(t): the router's weight, with which the model
    multiplies the output (of Llama 4, which multiplies inputs, 1). Higher = keep. `renormalise`: g_e(t) / Σ_k g_k(t)
    over the token's experts, as in Cerebras' code; without effect where the model does so itself.

        python -m flap structure.experts=true metric=REAP
    """

    renormalise: bool = False  # the router's weights of a token add up to 1

    def score_experts(self, routed: Routed) -> Tensor:
        """Return score_E; higher = keep."""
        return routed.mean.shared if self.renormalise else routed.mean.weighted
