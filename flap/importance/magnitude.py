"""Magnitude, the score of Mag-sp: the norm of the weights."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flap.calibration import Statistics
from flap.importance.base import Metric


@dataclass(frozen=True)
class Magnitude(Metric):
    """score_j = ‖W_:j‖₂. It uses no activations, so it needs no calibration."""

    needs_statistics: ClassVar[bool] = False

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return ‖W_:j‖₂ of each channel j, in float32; higher = keep."""
        return weight_OI.square().sum(dim=0).sqrt()
