"""OBS: the error that the removal of a unit causes after the remaining units have been fitted to replace it.

Optimal Brain Surgeon (Hassibi and Stork 1993) for whole units, as in ZipLM (arXiv 2302.04089) and SlimGPT (2412.18110).

Legend: O output channels · I input channels · U units · C channels of a unit · K kept channels · L removed channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.calibration import Statistics, merge
from flap.config import require
from flap.importance.base import Metric
from flap.models.devices import widest_float

STEPS = 64  # after each 64th part of the units is removed, the remaining channels are fitted again


@dataclass(frozen=True)
class OBS(Metric):
    """score = the expected squared output error that remains after a removal with the best linear compensation.

    A neuron costs ‖W_:j‖² / [H⁻¹]_jj, an attention unit u costs tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ), divided evenly over its
    channels; H = C + ridge · mean(diag C) · 1 with the covariance C. The cheapest units are removed first, and W and
    H⁻¹ are updated after each step. A unit's score is its cost when it is removed, but never less than the score of
    a unit that was removed before it. Higher = keep.

    Raises:
        ValueError: C has no inverse and the ridge is too small to give it one in floating point.
    """

    needs_covariance: ClassVar[bool] = True
    measures_error: ClassVar[bool] = True
    ridge: float = 0.01

    def __post_init__(self) -> None:
        require(0 < self.ridge < math.inf, "metric.ridge", self.ridge, "a number > 0")

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        """Return score_I with each channel as a unit of its own."""
        return self.score_units(weight_OI, statistics, torch.arange(weight_OI.shape[1])[:, None]).flatten()

    def score_units(self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor) -> Tensor:
        """Return score_UC: the cost of each unit, divided evenly over its channels, in float32; higher = keep."""
        assert statistics is not None and statistics.parts is not None
        all_tokens = merge(*statistics.parts)
        assert all_tokens.comoment_II is not None
        wide = widest_float(weight_OI.device)
        columns = columns_UC.flatten().to(weight_OI.device)  # the channels of a unit become consecutive
        hessian_II = all_tokens.comoment_II[columns][:, columns].to(wide) / all_tokens.num_tokens
        scale = hessian_II.diagonal().mean()
        if scale == 0:  # all channels are constant: the bias replaces any unit exactly
            return torch.zeros(columns_UC.shape)
        hessian_II.diagonal().add_(self.ridge * scale)
        try:
            cost_U = _removal_costs(weight_OI[:, columns].to(wide), torch.linalg.inv(hessian_II), columns_UC.shape[1])
        except torch.linalg.LinAlgError as error:
            raise ValueError(f"metric.ridge={self.ridge}: too small for a singular covariance; try 0.01") from error
        return (cost_U / columns_UC.shape[1]).float()[:, None].expand(columns_UC.shape)


def _removal_costs(weight_OI: Tensor, inverse_II: Tensor, channels: int) -> Tensor:
    """Return cost_U, the cost of each unit at the time of its removal; a unit owns `channels` consecutive channels."""
    remaining_U = torch.arange(weight_OI.shape[1] // channels, device=weight_OI.device)
    cost_U, floor = torch.zeros(len(remaining_U), dtype=weight_OI.dtype, device=weight_OI.device), 0.0
    step_size = math.ceil(len(remaining_U) / STEPS)
    while len(remaining_U):
        current_U = _costs(weight_OI, inverse_II, channels)
        cheapest = current_U.argsort(stable=True)[:step_size]
        cost_U[remaining_U[cheapest]] = current_U[cheapest].clamp(min=floor)
        floor = float(cost_U[remaining_U[cheapest]].max())
        keep_U = torch.ones(len(remaining_U), dtype=torch.bool, device=remaining_U.device)
        keep_U[cheapest] = False
        remaining_U, keep_I = remaining_U[keep_U], keep_U.repeat_interleave(channels)
        weight_OI, inverse_II = _remove(weight_OI, inverse_II, keep_I)
    return cost_U


def _costs(weight_OI: Tensor, inverse_II: Tensor, channels: int) -> Tensor:
    """Return cost_U = tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ)."""
    units = weight_OI.shape[1] // channels
    blocks_CCU = inverse_II.view(units, channels, units, channels).diagonal(dim1=0, dim2=2)
    weight_UCO = weight_OI.T.reshape(units, channels, -1)
    solved_UCO: Tensor = torch.linalg.solve(blocks_CCU.permute(2, 0, 1), weight_UCO)
    return (solved_UCO * weight_UCO).sum(dim=(1, 2))


def _remove(weight_OI: Tensor, inverse_II: Tensor, keep_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight_OK, the best weights of the kept channels, and inverse_KK, the inverse of their part of H."""
    inverse_LI = inverse_II[~keep_I]
    map_LK = torch.linalg.solve(inverse_LI[:, ~keep_I], inverse_LI[:, keep_I])
    weight_OK = weight_OI[:, keep_I] - weight_OI[:, ~keep_I] @ map_LK
    return weight_OK, inverse_II[keep_I][:, keep_I] - inverse_LI[:, keep_I].T @ map_LK
