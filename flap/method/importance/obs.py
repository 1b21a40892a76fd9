"""OBS: the error that the removal of a unit causes after the remaining units have been fitted to replace it.

Legend: O output channels · I input channels · U units, R of them still in the matrices · C channels of a unit ·
L removed channels.
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

RIDGES = 4  # that are tried, each ten times the one before
STEPS = 64  # after each 64th part of the units is removed, the remaining channels are fitted again


@dataclass(frozen=True)
class OBS(Metric):
    """Optimal Brain Surgeon (Hassibi and Stork 1993) of whole units, as in ZipLM (2302.04089), SlimGPT (2412.18110).

        cost_u = tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ), for a neuron j: ‖W_:j‖² / [H⁻¹]_jj;   H = C + ridge · mean(diag C) · 1

    W (O, I): the output projection, W_u the columns of unit u. C (I, I): the covariance of its input channels over
    the calibration tokens. It is the expected squared output error that remains after a removal with the best linear
    compensation. The cheapest units are removed first, and W and H⁻¹ are updated after each step. A unit's score is
    its cost when it is removed, divided evenly over its channels, but never less than the score of a unit that was
    removed before it; higher = keep.

    Where H has no inverse in floating point, as with massive activations, whose rounding is larger than the ridge,
    the ridge is ten times as large, and ten times again, with a warning.

        python -m flap metric=OBS metric.ridge=0.01

    Raises:
        ValueError: H has no inverse with any of these ridges.
    """

    needs_covariance: ClassVar[bool] = True
    measures_error: ClassVar[bool] = True
    ridge: float = 0.01  # in units of the mean variance of a block's channels; > 0

    def __post_init__(self) -> None:
        require(0 < self.ridge < math.inf, "metric.ridge", self.ridge, "a number > 0")

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return score_I with each channel as a unit of its own."""
        return self.score_units(
            weight_OI, statistics, torch.arange(weight_OI.shape[1])[:, None]
        ).flatten()

    @torch.no_grad()
    def score_units(
        self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor
    ) -> Tensor:
        """Return score_UC: the cost of each unit, divided evenly over its channels, in float32; higher = keep."""
        assert statistics is not None
        for k in range(RIDGES):
            ridge = self.ridge * 10.0**k
            if k:
                line = "metric.ridge=%g is too small for these %d channels; trying %g"
                log.warning(line, ridge / 10, columns_UC.numel(), ridge)
            with suppress(torch.linalg.LinAlgError):
                cost_U = _costs_with(ridge, weight_OI, statistics, columns_UC)
                return (cost_U / columns_UC.shape[1]).float()[:, None].expand(columns_UC.shape)
        raise ValueError(
            f"metric.ridge={self.ridge}: too small, even times {10 ** (RIDGES - 1)}; try {max(0.01, 10 * ridge):g}"
        )


def _costs_with(
    ridge: float, weight_OI: Tensor, statistics: Statistics, columns_UC: Tensor
) -> Tensor:
    """Return cost_U with a ridge. LinAlgError: H has no inverse."""
    wide = widest_float(weight_OI.device)
    columns = columns_UC.flatten().to(weight_OI.device)  # the channels of a unit become consecutive
    matrix_II = Covariance.of(*(statistics.parts or [statistics])).hessian(columns, ridge, wide)
    if (
        not matrix_II.diagonal().any()
    ):  # all channels are constant: the bias replaces any unit exactly
        return weight_OI.new_zeros(len(columns_UC), dtype=wide)
    info = matrix_II.new_empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(
        matrix_II, check_errors=True, out=(matrix_II, info)
    )  # in place, as is the inverse
    torch.cholesky_inverse(matrix_II, out=matrix_II)
    return _removal_costs(weight_OI[:, columns].to(wide), matrix_II.mT, columns_UC.shape[1])


def _removal_costs(weight_OI: Tensor, inverse_II: Tensor, channels: int) -> Tensor:
    """Return cost_U, the cost of each unit at the time of its removal; a unit owns `channels` consecutive channels.

    Both tensors are changed. Removed channels stay in them, with zeros, until half of the channels are removed.
    """
    num_units = weight_OI.shape[1] // channels
    cost_U = weight_OI.new_zeros(num_units)
    floor = 0.0
    unit_R = torch.arange(num_units, device=weight_OI.device)
    remains_R = torch.ones_like(cost_U, dtype=torch.bool)
    step_size = math.ceil(num_units / STEPS)
    for left in range(num_units, 0, -step_size):
        if 2 * left <= len(unit_R):
            remaining = remains_R.repeat_interleave(channels).nonzero().flatten()
            weight_OI = _pack(
                weight_OI, torch.arange(len(weight_OI), device=weight_OI.device), remaining
            )
            inverse_II = _pack(inverse_II, remaining, remaining)
            unit_R = unit_R[remains_R]
            remains_R = remains_R[remains_R]
        current_R = torch.full_like(unit_R, torch.inf, dtype=cost_U.dtype)
        current_R[remains_R] = _costs(weight_OI, inverse_II, remains_R, channels)
        cheapest = current_R.argsort(stable=True)[: min(step_size, left)]
        cost_U[unit_R[cheapest]] = current_R[cheapest].clamp(min=floor)
        floor = float(cost_U[unit_R[cheapest]].max())
        remains_R[cheapest] = False
        removed_L = (
            cheapest[:, None] * channels + torch.arange(channels, device=cheapest.device)
        ).flatten()
        _remove(weight_OI, inverse_II, removed_L)
    return cost_U


def _pack(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return these rows and columns, both ascending, of a contiguous matrix. They move to the front of its memory."""
    packed = matrix.view(-1)[: len(rows) * len(columns)].view(len(rows), len(columns))
    for part, some in zip(packed.split(STRIP), rows.split(STRIP), strict=True):
        part.copy_(
            matrix[some].index_select(1, columns)
        )  # these rows are in front of those that are still needed
    return packed


def _costs(weight_OI: Tensor, inverse_II: Tensor, units_R: Tensor, channels: int) -> Tensor:
    """Return tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ) of the units u where the mask is true."""
    units = len(units_R)
    if channels == 1:
        square_I = torch.stack([part.square().sum(0) for part in weight_OI.split(STRIP)]).sum(
            0
        )  # a norm takes longer
        return square_I[units_R] / inverse_II.diagonal()[units_R]
    blocks_UCC = (
        inverse_II.view(units, channels, units, channels)
        .diagonal(dim1=0, dim2=2)
        .permute(2, 0, 1)[units_R]
    )
    weight_UCO = weight_OI.T.reshape(units, channels, -1)[units_R]
    half_UCO: Tensor = torch.linalg.solve_triangular(
        torch.linalg.cholesky(blocks_UCC), weight_UCO, upper=False
    )
    return half_UCO.square().sum(dim=(1, 2))


def _remove(weight_OI: Tensor, inverse_II: Tensor, removed_L: Tensor) -> None:
    """Update W to the best weights without the channels L, and H⁻¹ to the inverse of H without them."""
    inverse_LI = inverse_II[removed_L]
    map_LI = torch.cholesky_solve(inverse_LI, torch.linalg.cholesky(inverse_LI[:, removed_L]))
    weight_OI.addmm_(weight_OI[:, removed_L], map_LI, alpha=-1)
    inverse_II.addmm_(inverse_LI.T, map_LI, alpha=-1)
