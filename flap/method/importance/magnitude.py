"""Magnitude, the norm of the weights."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flap.method.calibration import Statistics
from flap.method.importance.base import Metric


@dataclass(frozen=True)
class Magnitude(Metric):
    """The norm of a channel's weights: Mag-sp in FLAP's experiments (arXiv 2312.11983, section 4).

        score_j = ‖W_:j‖₂

    W (O, I): the output projection. No activations are used, so no calibration is needed; higher = keep.

        python -m flap metric=magnitude
    """

    needs_statistics: ClassVar[bool] = False

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return score_I in float32; higher = keep."""
        return weight_OI.square().sum(dim=0).sqrt()
