"""Metrics that score channels: FLAP's metrics, Wanda's metric, and two baselines.

The two baselines, which are the norm of weights and random scores, use no activations.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from flap.config import require
from flap.method.calibration import Statistics
from flap.method.importance.base import Metric


@dataclass(frozen=True)
class IFV(Metric):
    """Input feature variance (FLAP, arXiv 2312.11983, section 3.2).

        score_j = var_j

    var (I): the sample variance of the input channels of the output projection over the calibration
    tokens. The score measures how much channel j varies around its mean. If channel j is removed,
    FLAP's bias (`BiasCompensation`) has the effect of replacing all values of the channel with this
    mean. Higher = keep.

        python -m flap metric=IFV
    """

    # If true, scores of attention channels are squared, as in the official code of FLAP.
    square_attention: bool = True

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return statistics.var_I


@dataclass(frozen=True)
class WIFV(Metric):
    """Weighted input feature variance, the default (FLAP, arXiv 2312.11983, equation 5).

        score_j = var_j · Σ_o W_oj²

    W (O, I): the output projection. var (I): the sample variance of its input channels over the
    calibration tokens. The score is the expected squared error in the output of the projection if
    the values of channel j are replaced with their mean. Higher = keep.

        python -m flap metric=WIFV
    """

    measures_error: ClassVar[bool] = True
    # If true, scores of attention channels are squared, as in the official code of FLAP.
    square_attention: bool = True

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return statistics.var_I * weight_OI.square().sum(dim=0)


@dataclass(frozen=True)
class WIFN(Metric):
    """Weighted input feature norm (FLAP, arXiv 2312.11983, section 4.4).

        score_j = mean_o |W_oj| · √msq_j

    W (O, I): the output projection. msq (I): the mean square of its input channels over the
    calibration tokens. The mean square of a channel is its squared mean plus its variance.
    Higher = keep. Instead of the root mean square √msq_j, the official code of FLAP uses the norm
    of the channel's values at the tokens of a window, which is larger by a constant factor.

        python -m flap metric=WIFN
    """

    # If true, scores of attention channels are squared, as in the official code of FLAP.
    square_attention: bool = True

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return weight_OI.abs().mean(dim=0) * statistics.msq_I.sqrt()


@dataclass(frozen=True)
class Wanda(WIFN):
    """Wanda's score for whole channels, as in Wanda-sp (arXiv 2306.11695, equation 1).

        score_j = mean_o |W_oj| · √msq_j

    Wanda (Sun et al. 2023) scores single weights. Wanda-sp, a baseline in the paper on FLAP, scores
    whole channels. See `WIFN` for the definitions of W and msq. Unlike in `WIFN`, the scores of
    attention channels are not squared. Higher = keep.

        python -m flap metric=wanda

    `method=wanda_sp` also makes the other choices of Wanda-sp: each layer loses the same share of
    its parameters, nothing makes up for the removed channels, and the statistics of a layer are
    computed after all earlier layers have been pruned.
    """

    # If true, scores of attention channels are squared, which Wanda does not do.
    square_attention: bool = False


@dataclass(frozen=True)
class Magnitude(Metric):
    """The norm of a channel's weights, called Mag-sp by FLAP (arXiv 2312.11983, section 4).

        score_j = ‖W_:j‖₂

    W (O, I): the output projection. The score needs no activations, and therefore no calibration.
    Higher = keep.

        python -m flap metric=magnitude
    """

    needs_statistics: ClassVar[bool] = False

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        return weight_OI.square().sum(dim=0).sqrt()


@dataclass(frozen=True)
class Random(Metric):
    """Random scores, as a baseline that every metric should beat.

        score_j ~ U[0, 1)

    j: an input channel of the output projection. All projections share one generator, so scores
    depend on the order in which projections are scored. Higher = keep.

        python -m flap metric=random metric.seed=1
    """

    needs_statistics: ClassVar[bool] = False
    # seed of the generator; a whole number
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 <= self.seed < 2**32, "metric.seed", self.seed, "a whole number from 0 to 2**32 - 1"
        )

    @cached_property
    def generator(self) -> torch.Generator:
        """The generator of random numbers, which all projections share."""
        return torch.Generator().manual_seed(self.seed)

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return the next random numbers of the generator as score_I, in float32."""
        return torch.rand(weight_OI.shape[1], generator=self.generator)
