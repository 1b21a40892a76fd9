"""WIFV, weighted input feature variance."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


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
        """Return score_I in float32; higher = keep."""
        assert statistics is not None
        return statistics.var_I * weight_OI.square().sum(dim=0)
