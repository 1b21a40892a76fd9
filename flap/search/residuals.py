"""What each unit of a block adds to the block's output that the kept units do not: residuals of least squares.

Legend: O output channels · I input channels, K kept, P pruned ones · U units of C channels each, V some of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Residuals:
    """The output projection of a block whose units are all computed, of which some are kept, with least squares.

        y = W' x + b',  W'_K = W_K + W_P B,  b' = (W − W') mean,  B = C_PK (C_KK + λ 1)⁻¹   (`LinearCompensation`)

    Unit u, of channels c, has the residual r_u = x_c − its prediction from the kept units without u, and y differs by
    S_u r_u between the kept set with u and the one without it, both with least squares. W'_P is 0.
    """

    weight_OI: Tensor  # W'
    bias_O: Tensor  # b', which is added to the projection's own bias
    map_II: Tensor  # from x − mean to the residuals of all channels
    slope_OI: Tensor  # S
    error_U: Tensor  # E ‖S_u r_u‖², what a unit adds to the squared error of the output where it is not kept

    @classmethod
    def of(
        cls, weight_OI: Tensor, covariance_II: Tensor, mean_I: Tensor, columns_UC: Tensor, kept_U: Tensor
    ) -> "Residuals":
        """Return the residuals of a kept set. covariance_II: with λ on its diagonal. kept_U: a mask."""
        size, (kept_K, pruned_P) = columns_UC.shape[1], (columns_UC[mask_U].flatten() for mask_U in (kept_U, ~kept_U))
        inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(covariance_II[kept_K][:, kept_K]))
        from_kept_PK = covariance_II[pruned_P][:, kept_K] @ inverse_KK
        left_PP = covariance_II[pruned_P][:, pruned_P] - from_kept_PK @ covariance_II[kept_K][:, pruned_P]
        weight, map_II, slope_OI = torch.zeros_like(weight_OI), torch.zeros_like(covariance_II), weight_OI.clone()
        weight[:, kept_K] = weight_OI[:, kept_K] + weight_OI[:, pruned_P] @ from_kept_PK
        own_VCC = _diagonal(inverse_KK, size)
        from_others_KK = torch.linalg.solve(own_VCC, inverse_KK.unflatten(0, (-1, size))).flatten(0, 1)
        map_II[kept_K[:, None], kept_K] = from_others_KK
        map_II[pruned_P[:, None], kept_K] = -from_kept_PK
        map_II[pruned_P, pruned_P] = 1
        slope_OI[:, kept_K] = weight[:, kept_K]
        lost_OVC = (weight_OI[:, pruned_P] @ left_PP).unflatten(1, (-1, size))
        variance_VCC = _diagonal(left_PP, size)
        slope_OI[:, pruned_P] = torch.linalg.solve(variance_VCC, lost_OVC.movedim(0, -1)).flatten(0, 1).T
        variance_UCC = covariance_II.new_empty(*columns_UC.shape, size)
        variance_UCC[kept_U], variance_UCC[~kept_U] = torch.linalg.inv(own_VCC), variance_VCC
        slope_UOC = slope_OI[:, columns_UC].movedim(0, 1)
        error_U = torch.einsum("uoc,ucd,uod->u", slope_UOC, variance_UCC, slope_UOC)
        return cls(weight, (weight_OI - weight) @ mean_I, map_II, slope_OI, error_U)


def _diagonal(matrix: Tensor, size: int) -> Tensor:
    """Return the square blocks of this size on the diagonal of a matrix."""
    count = len(matrix) // size
    blocks_VCVC = matrix.reshape(count, size, count, size)
    return blocks_VCVC.diagonal(dim1=0, dim2=2).movedim(-1, 0)
