"""The elimination of channels in a fixed order: one factor of the covariance serves every number of removed channels.

With the channels in removal order, H = C + λ' · 1 has a factorisation H = U Uᵀ with an upper triangular U. For every
number of removed channels the kept ones K are the last ones, and H_KK = U_KK U_KKᵀ: the ridge least-squares map from
the kept channels to the removed ones P, C_PK (C_KK + λ' · 1)⁻¹, takes two triangular solves with a block of U.
(SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774, uses the same factor for one row of a weight at a time.)

Legend: O output channels · I input channels, in removal order · P removed, K kept channels: the first ones, the others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flap.models.devices import widest_float


@dataclass(frozen=True)
class Elimination:
    """The factor of one covariance with one ridge, and the slopes of all least-squares fits that follow from it."""

    weight_OI: Tensor
    covariance_II: Tensor
    factor_II: Tensor  # U; only its last rows and columns, if H has no factor for more channels than those

    @classmethod
    def of(cls, weight_OI: Tensor, covariance_II: Tensor, ridge: float, quick: bool = False) -> "Elimination":
        """Return the elimination with λ' = ridge · mean(diag C).

        The factor is computed in the widest type of the device; quick: in float32, unless that fails.
        """
        lower_II, failed = covariance_II, torch.tensor(1)
        for precision in (*((torch.float32,) if quick else ()), widest_float(covariance_II.device)):
            if failed:
                hessian_II = covariance_II.flip(0, 1).to(precision, copy=True)
                hessian_II.diagonal().add_(ridge * hessian_II.diagonal().mean())
                lower_II, failed = torch.linalg.cholesky_ex(hessian_II)
        factors = int(failed) - 1 if failed else len(lower_II)
        return cls(weight_OI, covariance_II, lower_II[:factors, :factors].flip(0, 1))

    def slope(self, removed: int) -> Tensor | None:
        """Return slope_OK = W_P C_PK (C_KK + λ' · 1)⁻¹ in float32, or None if there is no inverse."""
        kept = len(self.covariance_II) - removed
        if kept > len(self.factor_II):
            return None
        factor_KK = self.factor_II[-kept:, -kept:]
        lost_OP, covariance_PK = self.weight_OI[:, :removed], self.covariance_II[:removed, removed:]
        cross_OK = lost_OP.to(factor_KK.dtype) @ covariance_PK.to(factor_KK.dtype)
        half_OK = torch.linalg.solve_triangular(factor_KK.T, cross_OK, upper=False, left=False)
        slope_OK = torch.linalg.solve_triangular(factor_KK, half_OK, upper=True, left=False).float()
        return slope_OK if torch.isfinite(slope_OK).all() else None
