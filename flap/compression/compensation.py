"""Compensation: the output projection is changed to replace the effect of removed channels (FLAP, section 3.4).

Legend: O output channels · I input channels · K kept channels · P pruned channels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from flap.calibration import Statistics


class FitReport(NamedTuple):
    """The fit report of a block: how well a linear map replaces the removed channels.

    ridge: the chosen one; None if the map was no better than the bias, which is used then. Errors are mean squared
    output errors of the block on held-out calibration tokens; lower is better.
    """

    ridge: float | None
    held_out_error: float
    held_out_error_of_bias: float


class Fit(NamedTuple):
    """The new weight, what is added to the old bias (None: nothing), both float32, and the report of a linear fit."""

    weight_OK: Tensor
    bias_O: Tensor | None
    report: FitReport | None = None


@dataclass(frozen=True)
class Compensation(ABC):
    """The base class of the compensations, which fit a pruned output projection to the dense one."""

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = True

    @abstractmethod
    def fit(self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor) -> Fit:
        """Return new weight and addition to the bias. `statistics` is None only if `needs_statistics` is False."""


@dataclass(frozen=True)
class NoCompensation(Compensation):
    """No compensation: weight W_K, bias unchanged. The removed channels are replaced by zero."""

    needs_statistics: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = False

    def fit(self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor) -> Fit:
        """Return the weight of the kept channels, and no addition to the bias."""
        return Fit(weight_OI[:, kept_K], None)


@dataclass(frozen=True)
class BiasCompensation(Compensation):
    """FLAP's bias: weight W_K, bias + W_P · mean_P. The removed channels are replaced by their calibration means."""

    def fit(self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor) -> Fit:
        """Return the weight of the kept channels, and W_P · mean_P as the addition to the bias."""
        assert statistics is not None
        return Fit(weight_OI[:, kept_K], weight_OI[:, pruned_P] @ statistics.mean_I[pruned_P].float())
