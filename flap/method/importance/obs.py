"""The metric OBS, which scores a unit by the error that the removal of the unit causes.

This is the error in the output of the attention or MLP to which the unit belongs. The metric
assumes that the weights of all other units in the output projection are adjusted so that the error
is as small as possible. A unit is removed as a whole: a KV head with its query heads, a neuron of
an MLP, or an expert.

Legend: O: output channels · I: input channels · U: units · R: units whose channels are still in the
weight W and in H⁻¹, the inverse of the covariance plus the ridge · C: channels of a unit ·
L: removed channels.
"""

import logging
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.config import require
from flap.method.calibration import Statistics
from flap.method.calibration.covariance import Covariance
from flap.method.calibration.symmetric import STRIP
from flap.method.importance.base import Metric
from flap.models.devices import widest_float

log = logging.getLogger(__name__)

RIDGES = 4  # number of ridges to try; each ridge is ten times the previous ridge
# maximum number of steps in which units are removed. Each step removes 1/64 of all units, rounded
# up, and adjusts the weights of all units that are not yet removed.
STEPS = 64


@dataclass(frozen=True)
class OBS(Metric):
    """Optimal Brain Surgeon (Hassibi and Stork 1993) for whole units.

    ZipLM (arXiv 2302.04089) and SlimGPT (arXiv 2412.18110) prune whole units in the same way.

        cost_u = tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ), for a neuron j: ‖W_:j‖² / [H⁻¹]_jj
        H = C + ridge · mean(diag C) · 1

    W (O, I): the output projection. C (I, I): the covariance of its input channels over the
    calibration tokens. 1: the identity matrix. W_u: the columns of W for the channels of unit u.
    [H⁻¹]_uu: the rows and columns of H⁻¹ for these channels. The cost is the expected squared error
    in the output after the removal of the unit. The weights of all other units and the bias are
    adjusted so that this error is as small as possible. Units are removed in at most 64 steps. Each
    step removes the units with the lowest costs, and updates W and H⁻¹. A unit's score is its cost
    at the moment of its removal, divided evenly over its channels. If a cost is lower than the
    highest cost of all earlier steps, it is raised to this highest cost. Higher = keep.

    Rounding errors can make the inversion of H fail. This happens with massive activations, whose
    rounding errors exceed the ridge. In this case, the ridge is multiplied by ten, up to three
    times, with a warning each time.

        python -m flap metric=OBS metric.ridge=0.01

    Raises:
        ValueError: H cannot be inverted with any of these four ridges.
    """

    needs_covariance: ClassVar[bool] = True
    measures_error: ClassVar[bool] = True
    # the ridge as a multiple of the mean variance of the input channels of a projection; > 0
    ridge: float = 0.01

    def __post_init__(self) -> None:
        require(0 < self.ridge < math.inf, "metric.ridge", self.ridge, "a number > 0")

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Score each channel as a separate unit, and return the scores (score_I)."""
        columns_U1 = torch.arange(weight_OI.shape[1])[:, None]
        return self.score_units(weight_OI, statistics, columns_U1).flatten()

    @torch.no_grad()
    def score_units(
        self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor
    ) -> Tensor:
        """Return the cost of each unit, divided evenly over its channels (score_UC), in float32."""
        assert statistics is not None
        for k in range(RIDGES):
            ridge = self.ridge * 10.0**k
            if k > 0:
                log.warning(
                    "metric.ridge=%g is too small for these %d channels; trying %g",
                    ridge / 10,
                    columns_UC.numel(),
                    ridge,
                )
            with suppress(torch.linalg.LinAlgError):
                cost_U = _costs_with(ridge, weight_OI, statistics, columns_UC)
                score_U = (cost_U / columns_UC.shape[1]).float()
                return score_U[:, None].expand(columns_UC.shape)
        raise ValueError(
            f"metric.ridge={self.ridge}: too small, even times {10 ** (RIDGES - 1)}; "
            f"try {max(0.01, 10 * ridge):g}"
        )


def _costs_with(
    ridge: float, weight_OI: Tensor, statistics: Statistics, columns_UC: Tensor
) -> Tensor:
    """Return the costs of all units (cost_U) with a given ridge, as `_removal_costs` computes them.

    Raises:
        LinAlgError: H cannot be inverted.
    """
    wide = widest_float(weight_OI.device)
    columns = columns_UC.flatten().to(weight_OI.device)  # the channels of a unit become consecutive
    covariance = Covariance.of(*(statistics.parts or [statistics]))
    matrix_II = covariance.hessian(columns, ridge, wide)
    if not matrix_II.diagonal().any():
        # all channels are constant, so they can be replaced with their means without an error
        return weight_OI.new_zeros(len(columns_UC), dtype=wide)

    # factorise and invert in place, because the matrix may take gigabytes
    info = matrix_II.new_empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(matrix_II, check_errors=True, out=(matrix_II, info))
    torch.cholesky_inverse(matrix_II, out=matrix_II)
    return _removal_costs(weight_OI[:, columns].to(wide), matrix_II.mT, columns_UC.shape[1])


def _removal_costs(weight_OI: Tensor, inverse_II: Tensor, channels: int) -> Tensor:
    """Remove all units in steps (`OBS`), and return each unit's cost when it is removed (cost_U).

    A unit has `channels` consecutive channels. W (`weight_OI`) and H⁻¹ (`inverse_II`) are changed
    in place. Removed channels at first remain in these two matrices as zeros. As soon as at least
    half of the channels in the matrices are removed channels, both matrices drop these channels.
    """
    num_units = weight_OI.shape[1] // channels
    step_size = math.ceil(num_units / STEPS)
    cost_U = weight_OI.new_zeros(num_units)
    floor = 0.0
    unit_R = torch.arange(num_units, device=weight_OI.device)
    remains_R = torch.ones_like(cost_U, dtype=torch.bool)
    for left in range(num_units, 0, -step_size):
        # 1. if at least half of the channels in the matrices are removed, drop the removed channels
        if 2 * left <= len(unit_R):
            remaining = remains_R.repeat_interleave(channels).nonzero().flatten()
            every_row = torch.arange(len(weight_OI), device=weight_OI.device)
            weight_OI = _pack(weight_OI, every_row, remaining)
            inverse_II = _pack(inverse_II, remaining, remaining)
            unit_R = unit_R[remains_R]
            remains_R = remains_R[remains_R]

        # 2. find the units with the lowest cost
        current_R = torch.full_like(unit_R, torch.inf, dtype=cost_U.dtype)
        current_R[remains_R] = _costs(weight_OI, inverse_II, remains_R, channels)
        cheapest = current_R.argsort(stable=True)[: min(step_size, left)]
        cost_U[unit_R[cheapest]] = current_R[cheapest].clamp(min=floor)
        floor = float(cost_U[unit_R[cheapest]].max())

        # 3. remove the units with the lowest cost
        remains_R[cheapest] = False
        channel_C = torch.arange(channels, device=cheapest.device)
        removed_L = (cheapest[:, None] * channels + channel_C).flatten()
        _remove(weight_OI, inverse_II, removed_L)
    return cost_U


def _pack(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the submatrix of these rows and columns, moved to the front of the matrix's memory.

    The matrix must be contiguous, and its elements are overwritten. The indices of rows and columns
    must be ascending.
    """
    packed = matrix.view(-1)[: len(rows) * len(columns)].view(len(rows), len(columns))
    for strip, some_rows in zip(packed.split(STRIP), rows.split(STRIP), strict=True):
        # elements only move towards the front, so none is overwritten before it is read
        strip.copy_(matrix[some_rows].index_select(1, columns))
    return packed


def _costs(weight_OI: Tensor, inverse_II: Tensor, units_R: Tensor, channels: int) -> Tensor:
    """Return the cost tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ) of each unit u for which `units_R` is true.

    weight_OI: W. inverse_II: H⁻¹. channels: the number of channels of each unit.
    """
    units = len(units_R)
    if channels == 1:
        # sums of squares are computed, because norms would take more time
        squares = [strip.square().sum(0) for strip in weight_OI.split(STRIP)]
        square_I = torch.stack(squares).sum(0)
        return square_I[units_R] / inverse_II.diagonal()[units_R]
    inverse_UCUC = inverse_II.view(units, channels, units, channels)
    block_UCC = inverse_UCUC.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[units_R]
    weight_UCO = weight_OI.T.reshape(units, channels, -1)[units_R]
    factor_UCC = torch.linalg.cholesky(block_UCC)
    half_UCO: Tensor = torch.linalg.solve_triangular(factor_UCC, weight_UCO, upper=False)
    return half_UCO.square().sum(dim=(1, 2))


def _remove(weight_OI: Tensor, inverse_II: Tensor, removed_L: Tensor) -> None:
    """Remove the channels `removed_L`: update W and H⁻¹ in place.

    W is adjusted so that the removal causes the smallest possible error in the output.
    """
    inverse_LI = inverse_II[removed_L]
    map_LI = torch.cholesky_solve(inverse_LI, torch.linalg.cholesky(inverse_LI[:, removed_L]))
    weight_OI.addmm_(weight_OI[:, removed_L], map_LI, alpha=-1)
    inverse_II.addmm_(inverse_LI.T, map_LI, alpha=-1)
