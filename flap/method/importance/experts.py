"""Metrics that score whole experts by their effect on the tokens that are routed to them.

Legend: E: experts of a layer · R: tokens that are routed to one expert · N: fields of `OfToken`,
which are the norms of an expert's output without and with the router's weight.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flap.method.calibration import Statistics
from flap.method.importance.channels import WIFV
from flap.models import Block, OfToken


class Routed(NamedTuple):
    """Averages over the tokens that are routed to each expert of a layer.

    The averages of an expert to which no token is routed are 0.
    """

    tokens_E: Tensor  # number R of tokens that are routed to each expert
    # the means of the two norms in `OfToken` over the tokens of each expert; each has shape (E)
    mean: OfToken
    # sample variance of each expert's output over its tokens, with divisor R - 1, summed over the
    # output channels
    variance_E: Tensor

    @classmethod
    def of(cls, experts: Sequence[Statistics]) -> "Routed":
        """Compute the averages of each expert from `LayerStatistics.routed`.

        The last channels of these statistics are the fields of `OfToken`.
        """
        numbers = len(OfToken._fields)
        means_EN = torch.stack([expert.mean_I[-numbers:].cpu() for expert in experts])
        variances = [expert.var_I[:-numbers].cpu().double().sum() for expert in experts]
        tokens_E = torch.tensor([expert.num_tokens for expert in experts], dtype=torch.float64)
        return cls(tokens_E, OfToken(*means_EN.unbind(dim=1)), torch.stack(variances))


@dataclass(frozen=True)
class ExpertMetric(WIFV):
    """Base class of metrics that score whole experts.

    KV heads, and the neurons of layers without experts, are scored by WIFV. The statistics of a
    layer are collected before any of its experts is removed, so the router still chooses among all
    experts. An expert to which no token is routed gets the score 0.
    """

    scores_experts: ClassVar[bool] = True
    measures_error: ClassVar[bool] = False

    @abstractmethod
    def score_experts(self, routed: Routed) -> Tensor:
        """Return the score of each expert (score_E), in any floating-point dtype.

        The experts with the lowest scores are removed first.
        """

    def scorers(
        self, block: Block, statistics: Sequence[Statistics], routed: Sequence[Statistics]
    ) -> list[Callable[[], Tensor]]:
        if block.whole and routed:
            return [partial(self._score_block, routed)]
        return super().scorers(block, statistics, routed)

    def _score_block(self, routed: Sequence[Statistics]) -> Tensor:
        """Return the scores of all experts of a layer as score_E1, on the CPU."""
        return self.score_experts(Routed.of(routed)).float()[:, None].cpu()


@dataclass(frozen=True)
class REAP(ExpertMetric):
    """Router-weighted expert activation pruning (REAP, Lasby et al. 2025, arXiv 2510.13999).

        score_e = mean_t g_e(t) · ‖f_e(x_t)‖₂

    t: the tokens that are routed to expert e. f_e(x_t): the output of the expert. g_e(t): the
    router's weight, by which the model multiplies the output. In Llama 4, g_e(t) is 1, because this
    model multiplies the input of the expert by the router's weight instead. Higher = keep.

        python -m flap structure.experts=true metric=REAP
    """

    def score_experts(self, routed: Routed) -> Tensor:
        return routed.mean.weighted


@dataclass(frozen=True)
class EAN(ExpertMetric):
    """Expert activation norm (EAN, arXiv 2504.05586), a baseline in the paper on REAP.

        score_e = Σ_t ‖f_e(x_t)‖₂

    t: the tokens that are routed to expert e. f_e(x_t): the output of the expert, without the
    router's weight. Higher = keep.

        python -m flap structure.experts=true metric=EAN
    """

    def score_experts(self, routed: Routed) -> Tensor:
        return routed.tokens_E * routed.mean.norm


@dataclass(frozen=True)
class MoNE(ExpertMetric):
    """Access frequency times output variance (MoNE, Zhang et al. 2025, arXiv 2507.00390).

        score_e = R_e / Σ_k R_k · √(Σ_o var_o(f_e))

    R_e: the number of tokens that are routed to expert e. k: an index of all experts of the layer.
    var_o(f_e): the sample variance of channel o of the output of expert e over these R_e tokens.
    Higher = keep. Instead of the frequency R_e / Σ_k R_k, the authors' code uses the mean weight
    that the router gives the expert.

        python -m flap structure.experts=true metric=MoNE
    """

    def score_experts(self, routed: Routed) -> Tensor:
        frequency_E = routed.tokens_E / routed.tokens_E.sum().clamp(min=1)
        return frequency_E * routed.variance_E.sqrt()
