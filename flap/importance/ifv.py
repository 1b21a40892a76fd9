"""IFV, input feature variance."""

from dataclasses import dataclass

from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


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
        """Return score_I in float32; higher = keep."""
        assert statistics is not None
        return statistics.var_I
