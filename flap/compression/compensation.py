"""What stands in for removed channels: the output projection absorbs it (FLAP, section 3.4).

Legend: O output channels · I input channels · K kept channels · P pruned channels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from flap.calibration import Statistics


class Repair(NamedTuple):
    """How well a linear map stands in for what left; ridge None: it was no better than the bias, which stays.

    Errors are mean squared output errors of the block on held-out calibration tokens.
    """

    ridge: float | None
    held_out_error: float
    held_out_error_of_bias: float


class Fit(NamedTuple):
    """The new weight, what is added to the old bias (None: nothing), both float32, and what a linear fit reports."""

    weight_OK: Tensor
    bias_O: Tensor | None
    repair: Repair | None = None


@dataclass(frozen=True)
class Compensation(ABC):
    """Fits what is left of an output projection to what it was."""

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False
    correction_ridges: ClassVar[tuple[float, ...]] = ()  # of the maps that may correct it behind pruned layers

    @abstractmethod
    def fit(self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor) -> Fit:
        """What becomes of weight and bias; `statistics` is None only where `needs_statistics` is False."""


@dataclass(frozen=True)
class NoCompensation(Compensation):
    """weight W_K, bias unchanged: the removed channels count as zero."""

    needs_statistics: ClassVar[bool] = False

    def fit(self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor) -> Fit:
        return Fit(weight_OI[:, kept_K], None)


@dataclass(frozen=True)
class BiasCompensation(Compensation):
    """weight W_K, bias + W_P · mean_P: the removed channels count as their mean over the calibration tokens."""

    def fit(self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor) -> Fit:
        assert statistics is not None
        return Fit(weight_OI[:, kept_K], weight_OI[:, pruned_P] @ statistics.mean_I[pruned_P])
