"""WIFV, weighted input feature variance (FLAP, section 3.2, equation 5): the default."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


@dataclass(frozen=True)
class WIFV(Metric):
    """score_j = var_j · Σ_o W_oj²: the expected squared output error once channel j is replaced by its mean."""

    measures_error: ClassVar[bool] = True
    square_attention: bool = True

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return var_j · Σ_o W_oj² of each channel j, in float32; higher = keep."""
        assert statistics is not None
        return statistics.var_I * weight_OI.square().sum(dim=0)
