"""WIFN, weighted input feature norm."""

from dataclasses import dataclass

from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


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
        """Return score_I in float32; higher = keep."""
        assert statistics is not None
        return weight_OI.abs().mean(dim=0) * statistics.msq_I.sqrt()
