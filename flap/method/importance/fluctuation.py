"""The paper's metrics, which score a channel by how much its inputs fluctuate or are, and Wanda's score."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flap.method.calibration import Statistics
from flap.method.importance.base import Metric


@dataclass(frozen=True)
class IFV(Metric):
    """Input feature variance (FLAP, arXiv 2312.11983, section 3.2).

        score_j = var_j

    var (I): the sample variance of the input channels of the output projection over the calibration tokens, in units
    of activation². Channel j varies by so much around the constant that replaces it; higher = keep.

        python -m flap metric=IFV
    """

    square_attention: bool = True  # square the scores of attention channels, as the official code does

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return statistics.var_I


@dataclass(frozen=True)
class WIFV(Metric):
    """Weighted input feature variance (FLAP, arXiv 2312.11983, section 3.2, equation 5): the default.

        score_j = var_j · Σ_o W_oj²

    W (O, I): the output projection. var (I): the sample variance of its input channels over the calibration tokens.
    It is the expected squared output error once channel j is replaced by its mean; higher = keep.

        python -m flap metric=WIFV
    """

    measures_error: ClassVar[bool] = True
    square_attention: bool = True  # square the scores of attention channels, as the official code does

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return statistics.var_I * weight_OI.square().sum(dim=0)


@dataclass(frozen=True)
class WIFN(Metric):
    """Weighted input feature norm (FLAP, arXiv 2312.11983, section 4.4).

        score_j = mean_o |W_oj| · √msq_j

    W (O, I): the output projection. msq (I): the mean square of its input channels over the calibration tokens. The
    mean of a channel counts, not only its variance; higher = keep. The official code uses the norm over the tokens of
    a sample, not the root mean square: a constant factor.

        python -m flap metric=WIFN
    """

    square_attention: bool = True  # square the scores of attention channels, as the official code does

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return weight_OI.abs().mean(dim=0) * statistics.msq_I.sqrt()


@dataclass(frozen=True)
class Wanda(WIFN):
    """Wanda's score for whole channels, as in Wanda-sp (Sun et al. 2023, arXiv 2306.11695, equation 1).

        score_j = mean_o |W_oj| · √msq_j

    Symbols as in `WIFN`, which squares the scores of attention channels; here they are not squared. Higher = keep.

        python -m flap metric=wanda          or, with its structure and compensation, method=wanda_sp
    """

    square_attention: bool = False  # attention channels compete with their plain scores
