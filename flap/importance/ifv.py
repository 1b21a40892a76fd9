"""IFV, input feature variance (FLAP, section 3.2)."""

from dataclasses import dataclass

from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


@dataclass(frozen=True)
class IFV(Metric):
    """score_j = var_j: the variance of channel j around the constant that would replace it, in units of activation²."""

    square_attention: bool = True

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return var_I, in float32; higher = keep."""
        assert statistics is not None
        return statistics.var_I
