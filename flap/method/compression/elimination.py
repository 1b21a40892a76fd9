"""Fit an output projection for several removals of channels with a single Cholesky factorisation.

A removal divides the input channels of an output projection into kept channels K and removed
channels P. The channels are sorted so that, in every removal, the kept channels come before the
removed channels. C is the covariance of the sorted channels, λ' is the ridge, and 1 is the identity
matrix. U is the upper triangular Cholesky factor of H = C + λ' · 1, so H = Uᵀ U. Because the kept
channels come first, H_KK = U_KKᵀ U_KK and C_KP = U_KKᵀ U_KP. The ridge least-squares map from the
kept channels to the removed channels is C_PK (C_KK + λ' · 1)⁻¹ = U_KPᵀ U_KK⁻ᵀ. A triangular solve
with the submatrices U_KK and U_KP computes this map without C. So the same U serves all removals.
(SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774, uses a Cholesky factor in a similar way,
for one row of a weight at a time.)

U is computed and stored in strips, which consist of consecutive rows.

Legend of tensor suffixes: O: output channels · I: input channels · K: kept channels · P: removed
channels · S: rows of a strip · J: columns of a strip, from the diagonal element of its first row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

from flap.method.calibration.covariance import Covariance
from flap.method.calibration.symmetric import STRIP, strips_of
from flap.method.compression.compensation import Removal
from flap.models.devices import widest_float

# number of rows of slope_OK (`Elimination.slope`) that are computed at a time, in the dtype of the
# factor
OUTPUTS = 512


@dataclass(frozen=True)
class Elimination:
    """The Cholesky factor U of H, from which the least-squares map of each removal is computed."""

    order_I: Tensor  # indices of the channels in the sorted order
    # U in strips of STRIP rows. A strip begins at the diagonal element of its first row. If the
    # factorisation of H fails at a channel, the last strip ends before this channel.
    strips: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, covariance: Covariance, order_I: Tensor, ridge: float, quick: bool = False
    ) -> "Elimination":
        """Factorise H = C + λ' · 1 with the ridge λ' = ridge · mean(diag C).

        The factor is computed in the floating-point dtype with the most bits that the device
        supports. With `quick`, it is first computed in float32, and again in the wider dtype only
        if float32 fails.
        """
        precision = torch.float32 if quick else widest_float(order_I.device)
        strips = _strips(covariance, order_I, ridge, precision)
        if quick and sum(map(len, strips)) < len(order_I):
            del strips  # free the float32 strips before wider strips are allocated
            return cls.of(covariance, order_I, ridge)
        return cls(order_I, strips)

    @property
    def num_channels(self) -> int:
        """The number of rows of U: all channels, or fewer if the factorisation of H has failed."""
        return sum(map(len, self.strips))

    def slope(self, weight_OI: Tensor, removal: Removal) -> Tensor | None:
        """Return the map from the kept channels to the lost output, or None if there is no map.

            slope_OK = W_P C_PK (C_KK + λ' · 1)⁻¹

        The lost output W_P x_P is the contribution of the removed channels x_P to the output. W_P
        are the columns of the weight for these channels. The map is in float32. There is no map if
        H_KK has no Cholesky factor, or if the computed values are not finite. In `order_I`, the
        kept channels of the removal must come before the removed channels.
        """
        kept = len(removal.kept_K)
        if kept > self.num_channels:
            return None
        slope_OK = weight_OI.new_empty(len(weight_OI), kept)
        ascending_K = self.order_I[:kept].argsort()
        for part_OI, part_OK in zip(weight_OI.split(OUTPUTS), slope_OK.split(OUTPUTS), strict=True):
            wide_OI = part_OI.index_select(1, self.order_I).to(self.strips[0].dtype)
            self._substitute(wide_OI, kept)
            torch.index_select(wide_OI[:, :kept].neg_().float(), 1, ascending_K, out=part_OK)
            if not torch.isfinite(part_OK).all():
                return None
        return slope_OK

    def _substitute(self, weight_OI: Tensor, kept: int) -> None:
        """Replace the columns W_K of the weight with -A, where A solves A U_KKᵀ = W_P U_KPᵀ.

        A is the map that `slope` returns. Here, the columns of A and of the weight are sorted by
        `order_I`.
        """
        for start in reversed(range(0, kept, STRIP)):
            rows = min(STRIP, kept - start)
            square_SS, later_SJ = self.strips[start // STRIP][:rows].tensor_split([rows], dim=1)
            explained_OS = (weight_OI[:, start + rows :] @ later_SJ.T).neg_()
            weight_OI[:, start : start + rows] = solve_triangular(
                square_SS.T, explained_OS, upper=False, left=False
            )


def _strips(
    covariance: Covariance, order_I: Tensor, ridge: float, precision: torch.dtype
) -> tuple[Tensor, ...]:
    """Return the strips of U, up to the first channel at which the factorisation of H fails."""
    added = ridge * covariance.diagonal().to(precision).mean()
    strips = list[Tensor]()
    empty = strips_of(len(order_I), precision, order_I.device)
    for start, strip_SJ in zip(range(0, len(order_I), STRIP), empty, strict=True):
        strip_SJ.copy_(covariance.block(order_I[start : start + STRIP], order_I[start:]))
        strip_SJ.diagonal().add_(added)
        for k, earlier_SJ in enumerate(strips):
            later_SJ = earlier_SJ[:, start - k * STRIP :]
            strip_SJ.addmm_(later_SJ[:, : len(strip_SJ)].T, later_SJ, alpha=-1)
        strips.append(_factor(strip_SJ))
        if len(strips[-1]) < len(strip_SJ):
            break
    return tuple(strips)


def _factor(strip_SJ: Tensor) -> Tensor:
    """Convert consecutive rows of H into rows of U.

    The products of all earlier rows of U must already be subtracted from these rows of H.

    If the factorisation fails at a row, return only the rows of U before this row.
    """
    square_SS, failed = cholesky_ex(strip_SJ[:, : len(strip_SJ)], upper=True)
    # factorise again with fewer rows, because some backends of cholesky_ex overwrite valid rows if
    # the factorisation fails
    while failed:
        strip_SJ = strip_SJ[: int(failed) - 1]
        square_SS, failed = cholesky_ex(strip_SJ[:, : len(strip_SJ)], upper=True)
    rows = len(strip_SJ)
    strip_SJ[:, rows:] = solve_triangular(square_SS.T, strip_SJ[:, rows:], upper=False)
    strip_SJ[:, :rows] = square_SS
    return strip_SJ
