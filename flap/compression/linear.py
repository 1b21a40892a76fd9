"""Linear compensation: a least-squares fit predicts the removed channels from the kept ones, as in OBC.

Legend: O output channels · I input channels · K kept channels · P pruned channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.calibration import Statistics, merge
from flap.compression.compensation import Compensation, Fit, FitReport
from flap.config import require
from flap.models.devices import widest_float

# The ridges to choose from, in units of the mean variance of the kept channels.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Regression:
    """The moments of a regression of y_O on x_K over a set of tokens: all that a linear fit and its error depend on.

    gram_KK: covariance of x_K. cross_KO: covariance of x_K and y_O. power: variance of y_O, summed over O.
    """

    mean_K: Tensor
    mean_O: Tensor
    gram_KK: Tensor
    cross_KO: Tensor
    power: float

    @classmethod
    def of(cls, weight_OI: Tensor, statistics: Statistics, kept_K: Tensor, pruned_P: Tensor) -> "Regression":
        """Return the regression of the lost output y_O = W_P x_P."""
        assert statistics.comoment_II is not None
        mean_I, weight_OP = statistics.mean_I.float(), weight_OI[:, pruned_P]
        cov_KI, cov_PP = (statistics.comoment_II[rows] / statistics.num_tokens for rows in (kept_K, pruned_P))
        cov_PP = cov_PP[:, pruned_P]
        power = ((weight_OP @ cov_PP) * weight_OP).sum().item()
        return cls(
            mean_I[kept_K], weight_OP @ mean_I[pruned_P], cov_KI[:, kept_K], cov_KI[:, pruned_P] @ weight_OP.T, power
        )

    def slope(self, ridge: float, precision: torch.dtype) -> Tensor | None:
        """Return slope_OK = cross_OK (gram_KK + ridge · mean(diag gram) · 1)⁻¹, or None if there is no inverse."""
        gram_KK = self.gram_KK.to(precision, copy=True)
        gram_KK.diagonal().add_(ridge * gram_KK.diagonal().mean())
        factor_KK, failed = torch.linalg.cholesky_ex(gram_KK)
        if failed:
            return None
        slope_OK = torch.cholesky_solve(self.cross_KO.to(precision), factor_KK).T.float()
        return slope_OK if torch.isfinite(slope_OK).all() else None

    def intercept(self, slope_OK: Tensor) -> Tensor:
        """Return mean_O - slope · mean_K, the best bias for this slope."""
        return self.mean_O - slope_OK @ self.mean_K

    def error(self, slope_OK: Tensor, bias_O: Tensor) -> float:
        """Return E ‖y - slope x - bias‖² over the tokens, computed from the moments."""
        explained = 2 * (slope_OK * self.cross_KO.T).sum() - ((slope_OK @ self.gram_KK) * slope_OK).sum()
        return self.power - explained.item() + (self.intercept(slope_OK) - bias_O).square().sum().item()


@dataclass(frozen=True)
class LinearCompensation(Compensation):
    """Linear compensation: weight W_K + A, bias + W_P mean_P - A mean_K, with a ridge least-squares map A.

    A = W_P C_PK (C_KK + ridge · mean(diag C_KK) · 1)⁻¹ maps x_K to W_P x_P; FLAP's bias is A = 0. ridge: None = the
    one of RIDGES whose map, fitted without the held-out tokens, has the smallest error on them; then A is fitted on all
    tokens. If no map has a smaller held-out error than the bias, or none exists, the bias is used.
    """

    needs_covariance: ClassVar[bool] = True
    ridge: float | None = None

    def __post_init__(self) -> None:
        valid = self.ridge is None or 0 <= self.ridge < math.inf
        require(valid, "compensation.ridge", self.ridge, "a number >= 0, or null to choose it")

    def fit(self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor) -> Fit:
        """Return the weight W_K + A, the addition W_P mean_P - A mean_K to the bias, and the fit report."""
        assert statistics is not None and statistics.parts is not None
        fitting, held_out = (Regression.of(weight_OI, part, kept_K, pruned_P) for part in statistics.parts)
        error_of_bias = held_out.error(torch.zeros_like(fitting.cross_KO.T), fitting.mean_O)
        ridges = RIDGES if self.ridge is None else (self.ridge,)
        error, ridge = min((held_out_error(fitting, held_out, ridge), ridge) for ridge in ridges)
        all_tokens = Regression.of(weight_OI, merge(*statistics.parts), kept_K, pruned_P)
        slope_OK = all_tokens.slope(ridge, widest_float(weight_OI.device)) if error < error_of_bias else None
        if slope_OK is None:
            return Fit(weight_OI[:, kept_K], all_tokens.mean_O, FitReport(None, error_of_bias, error_of_bias))
        report = FitReport(ridge, error, error_of_bias)
        return Fit(weight_OI[:, kept_K] + slope_OK, all_tokens.intercept(slope_OK), report)


def held_out_error(fitting: Regression, held_out: Regression, ridge: float) -> float:
    """Return the error of the fitted map on the held-out tokens; infinite if there is no map. Lower is better."""
    # the map is only compared with others: where the ridge is far above rounding, float32 is enough, in half the time
    wide = widest_float(fitting.gram_KK.device)
    slope_OK = fitting.slope(ridge, torch.float32 if ridge >= RIDGES[0] else wide)
    error = math.nan if slope_OK is None else held_out.error(slope_OK, fitting.intercept(slope_OK))
    return error if math.isfinite(error) else math.inf
