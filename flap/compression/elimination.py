"""The elimination of channels in a fixed order: one factor of the covariance serves every number of removed channels.

With the channels that leave first at the end, H = C + λ' · 1 has the Cholesky factor L. For every number of removed
channels the kept ones K are the first ones, and H_KK = L_KK L_KKᵀ: the ridge least-squares map from the kept channels
to the removed ones P, C_PK (C_KK + λ' · 1)⁻¹, takes two triangular solves with a block of L.
(SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774, uses such a factor for one row of a weight at a time.)

Legend: O output channels · I input channels · P removed, K kept channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flap.calibration.covariance import Covariance
from flap.calibration.symmetric import STRIP
from flap.compression.compensation import Removal
from flap.models.devices import widest_float

OUTPUTS = 512  # whose slopes are in memory in the type of the factor at a time


@dataclass(frozen=True)
class Elimination:
    """The factor of one covariance with one ridge, and the slopes of all least-squares fits that follow from it."""

    covariance: Covariance
    order_I: Tensor  # the channels; those that leave first are at the end
    factor_II: Tensor  # L; only its first rows and columns, if H has no factor for more channels than those

    @classmethod
    def of(cls, covariance: Covariance, order_I: Tensor, ridge: float, quick: bool = False) -> "Elimination":
        """Return the elimination with λ' = ridge · mean(diag C).

        The factor is computed in the widest type of the device; quick: in float32, unless that fails.
        """
        precision = torch.float32 if quick else widest_float(order_I.device)
        factor_II = covariance.hessian(order_I, ridge, precision)
        failed = factor_II.new_empty((), dtype=torch.int32)
        torch.linalg.cholesky_ex(factor_II, out=(factor_II, failed))  # in place
        if failed and quick:
            del factor_II  # before the other one is made
            return cls.of(covariance, order_I, ridge)
        factors = int(failed) - 1 if failed else len(factor_II)
        return cls(covariance, order_I, factor_II[:factors, :factors])

    def slope(self, weight_OI: Tensor, removal: Removal) -> Tensor | None:
        """Return slope_OK = W_P C_PK (C_KK + λ' · 1)⁻¹ in float32, or None if there is no inverse.

        The kept channels of the removal are the first ones of the order.
        """
        kept_K, pruned_P = removal
        if len(kept_K) > len(self.factor_II):
            return None
        first_K, factor_KK = self.order_I[: len(kept_K)], self.factor_II[: len(kept_K), : len(kept_K)]
        slope_OK, ascending_K = weight_OI.new_empty(len(weight_OI), len(kept_K)), first_K.argsort()
        for part_OP, part_OK in zip(weight_OI[:, pruned_P].split(OUTPUTS), slope_OK.split(OUTPUTS), strict=True):
            wide_OK = self.covariance.product(part_OP.to(factor_KK.dtype), pruned_P, first_K)
            _solve(wide_OK, factor_KK)
            part_OK.copy_(wide_OK.index_select(1, ascending_K))
            if not torch.isfinite(part_OK).all():
                return None
        return slope_OK


def _solve(right_OK: Tensor, factor_KK: Tensor) -> None:
    """Replace B by B (L Lᵀ)⁻¹, in blocks of channels: of a part of a larger L, torch would make a copy."""
    starts = range(0, len(factor_KK), STRIP)
    for start in starts:  # X Lᵀ = B
        here, before = slice(start, start + STRIP), slice(start)
        right_OK[:, here].addmm_(right_OK[:, before], factor_KK[here, before].mT, alpha=-1)
        block, some = factor_KK[here, here].mT, right_OK[:, here]
        some.copy_(torch.linalg.solve_triangular(block, some, upper=True, left=False))
    for start in reversed(starts):  # Y L = X
        here, behind = slice(start, start + STRIP), slice(start + STRIP, None)
        right_OK[:, here].addmm_(right_OK[:, behind], factor_KK[behind, here], alpha=-1)
        block, some = factor_KK[here, here], right_OK[:, here]
        some.copy_(torch.linalg.solve_triangular(block, some, upper=False, left=False))
