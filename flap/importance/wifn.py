"""WIFN, weighted input feature norm (FLAP, section 4.4)."""

from dataclasses import dataclass

from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


@dataclass(frozen=True)
class WIFN(Metric):
    """score_j = mean_o |W_oj| · sqrt(msq_j): the column mean of Wanda's score; the mean counts as much as the variance.

    The official code takes the norm over a sample's tokens, not the root mean square: a constant factor.
    """

    square_attention: bool = True

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return weight_OI.abs().mean(dim=0) * statistics.msq_I.sqrt()
