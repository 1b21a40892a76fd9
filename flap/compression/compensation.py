"""What stands in for removed channels: the output projection absorbs it (FLAP, section 3.4).

Legend: O output channels · I input channels · K kept channels · P pruned channels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flap.calibration import Statistics


@dataclass(frozen=True)
class Compensation(ABC):
    """Fits what is left of an output projection to what it was."""

    needs_statistics: ClassVar[bool] = True

    @abstractmethod
    def fit(
        self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(weight_OK, bias_O): the new weight, and what is added to the old bias; float32, None = nothing."""


@dataclass(frozen=True)
class NoCompensation(Compensation):
    """weight W_K, bias unchanged: the removed channels count as zero."""

    needs_statistics: ClassVar[bool] = False

    def fit(
        self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return weight_OI[:, kept_K], None


@dataclass(frozen=True)
class BiasCompensation(Compensation):
    """weight W_K, bias + W_P · mean_P: the removed channels count as their mean over the calibration tokens."""

    def fit(
        self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        assert statistics is not None
        return weight_OI[:, kept_K], weight_OI[:, pruned_P] @ statistics.mean_I[pruned_P]
