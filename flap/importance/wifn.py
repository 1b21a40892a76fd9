"""WIFN, weighted input feature norm (FLAP, section 4.4)."""

from dataclasses import dataclass

from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


@dataclass(frozen=True)
class WIFN(Metric):
    """score_j = mean_o |W_oj| · sqrt(msq_j): the column mean of Wanda's score. The mean counts, not only the variance.

    The official code uses the norm over the tokens of a sample, not the root mean square: a constant factor.
    """

    square_attention: bool = True

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return mean_o |W_oj| · sqrt(msq_j) of each channel j, in float32; higher = keep."""
        assert statistics is not None
        return weight_OI.abs().mean(dim=0) * statistics.msq_I.sqrt()
