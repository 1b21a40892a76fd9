"""Linear compensation: what left is predicted from what stays (least squares; OBC and its kin do the same).

Legend: O output channels · I input channels · K kept channels · P pruned channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.calibration import Moments, Statistics, merge
from flap.compression.compensation import Compensation, Fit, Repair

# Ridges to choose from, in units of the kept channels' mean variance.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Regression:
    """y_O on x_K, by moments over some tokens: all that a linear fit and its error depend on.

    gram_KK: covariance of x_K. cross_KO: covariance of x_K and y_O. power: variance of y_O, summed over O.
    """

    mean_K: Tensor
    mean_O: Tensor
    gram_KK: Tensor
    cross_KO: Tensor
    power: float

    @classmethod
    def of(cls, weight_OI: Tensor, known: Moments, kept_K: Tensor, pruned_P: Tensor) -> "Regression":
        """y_O = W_P x_P, what left."""
        assert known.comoment_II is not None
        mean_I, weight_OP = known.mean_I.float(), weight_OI[:, pruned_P]
        cov_KI, cov_PP = (known.comoment_II[rows] / known.num_tokens for rows in (kept_K, pruned_P))
        cov_PP = cov_PP[:, pruned_P]
        power = ((weight_OP @ cov_PP) * weight_OP).sum().item()
        return cls(
            mean_I[kept_K], weight_OP @ mean_I[pruned_P], cov_KI[:, kept_K], cov_KI[:, pruned_P] @ weight_OP.T, power
        )

    @classmethod
    def between(cls, known: Moments, inputs: int) -> "Regression":
        """The other channels on the first `inputs`; without inputs no co-moments are needed."""
        mean, y = known.mean_I.float(), slice(inputs, None)
        assert known.comoment_II is not None or not inputs
        cov_KI = mean.new_zeros(0, len(mean))
        if known.comoment_II is not None:
            cov_KI = known.comoment_II[:inputs] / known.num_tokens
        power = known.deviation_I[y].sum().item() / int(known.num_tokens)
        return cls(mean[:inputs], mean[y], cov_KI[:, :inputs], cov_KI[:, y], power)

    def slope(self, ridge: float, precision: torch.dtype = torch.float64) -> Tensor | None:
        """slope_OK = cross_OK (gram_KK + ridge · mean(diag gram) · 1)⁻¹, or None where that has no inverse."""
        wide = self.gram_KK.dtype if self.gram_KK.device.type == "mps" else precision  # mps has no float64
        gram_KK = self.gram_KK.to(wide, copy=True)
        gram_KK.diagonal().add_(ridge * gram_KK.diagonal().mean())
        factor_KK, failed = torch.linalg.cholesky_ex(gram_KK)
        if failed:
            return None
        slope_OK = torch.cholesky_solve(self.cross_KO.to(wide), factor_KK).T.float()
        return slope_OK if torch.isfinite(slope_OK).all() else None

    def intercept(self, slope_OK: Tensor) -> Tensor:
        return self.mean_O - slope_OK @ self.mean_K

    def error(self, slope_OK: Tensor, bias_O: Tensor) -> float:
        """E ‖y - slope x - bias‖² over these tokens, from the moments alone."""
        explained = 2 * (slope_OK * self.cross_KO.T).sum() - ((slope_OK @ self.gram_KK) * slope_OK).sum()
        return self.power - explained.item() + (self.intercept(slope_OK) - bias_O).square().sum().item()


@dataclass(frozen=True)
class LinearCompensation(Compensation):
    """weight W_K + A, bias + W_P mean_P - A mean_K, A the ridge least-squares map from x_K to W_P x_P.

    A = W_P C_PK (C_KK + ridge · mean(diag C_KK) · 1)⁻¹; FLAP's bias is A = 0. ridge: None = the one of RIDGES whose
    map, fitted without the held-out tokens, leaves the smallest error on them; then A is fitted on all. Where no map
    beats the bias there, or none exists, the bias it is.
    """

    needs_covariance: ClassVar[bool] = True
    correction_ridges: ClassVar[tuple[float, ...]] = (1e-2, 1e-1, 1.0, 10.0, 100.0)
    ridge: float | None = None

    def __post_init__(self) -> None:
        if self.ridge is not None and not 0 <= self.ridge < math.inf:
            raise ValueError(f"compensation.ridge={self.ridge}: expected a number >= 0, or null to choose it")

    def fit(self, weight_OI: Tensor, statistics: Statistics | None, kept_K: Tensor, pruned_P: Tensor) -> Fit:
        assert statistics is not None and statistics.parts is not None
        fitting, held_out = statistics.parts
        known, unseen = (Regression.of(weight_OI, part, kept_K, pruned_P) for part in (fitting, held_out))
        error_of_bias = unseen.error(torch.zeros_like(known.cross_KO.T), known.mean_O)
        ridges = RIDGES if self.ridge is None else (self.ridge,)
        error, ridge = min((held_out_error(known, unseen, ridge), ridge) for ridge in ridges)
        whole = Regression.of(weight_OI, merge(fitting, held_out), kept_K, pruned_P)
        slope_OK = whole.slope(ridge) if error < error_of_bias else None
        if slope_OK is None:
            return Fit(weight_OI[:, kept_K], whole.mean_O, Repair(None, error_of_bias, error_of_bias))
        repair = Repair(ridge, error, error_of_bias)
        return Fit(weight_OI[:, kept_K] + slope_OK, whole.intercept(slope_OK), repair)


def held_out_error(known: Regression, unseen: Regression, ridge: float) -> float:
    """Error on tokens that were not fitted on; infinite where no map exists."""
    # only judged: float32 does where the ridge is far above its rounding, in half the time
    slope_OK = known.slope(ridge, torch.float32 if ridge >= RIDGES[0] else torch.float64)
    error = math.nan if slope_OK is None else unseen.error(slope_OK, known.intercept(slope_OK))
    return error if math.isfinite(error) else math.inf
