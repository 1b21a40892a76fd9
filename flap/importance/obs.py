"""OBS: what a unit's removal costs once the units that stay have taken over its work.

Optimal Brain Surgeon (Hassibi and Stork 1993) for whole units, as in ZipLM (arXiv 2302.04089) and SlimGPT (2412.18110).

Legend: O output channels · I input channels · U units · C channels of a unit · K kept channels · L leaving channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.calibration import Statistics, merge
from flap.importance.base import Metric

STEPS = 64  # after every 64th of the units has left, what stays is fitted anew


@dataclass(frozen=True)
class OBS(Metric):
    """score = the expected squared output error that is left of a unit's removal after the best linear compensation.

    Of a neuron ‖W_:j‖² / [H⁻¹]_jj, of an attention unit u tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ), spread evenly over its channels;
    H = C + ridge · mean(diag C) · 1 with the covariance C. The cheapest units leave first, W and H⁻¹ follow, and a unit
    scores what it costs when its turn comes, but no less than those before it. Higher = keep.

    Raises: ValueError: the ridge is lost in rounding beside C, which has no inverse.
    """

    needs_covariance: ClassVar[bool] = True
    measures_error: ClassVar[bool] = True
    ridge: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"metric.ridge={self.ridge}: expected a number > 0")

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        return self.score_units(weight_OI, statistics, torch.arange(weight_OI.shape[1])[:, None]).flatten()

    def score_units(self, weight_OI: Tensor, statistics: Statistics | None, columns_UC: Tensor) -> Tensor:
        assert statistics is not None and statistics.parts is not None
        whole = merge(*statistics.parts)
        assert whole.comoment_II is not None
        wide = torch.float32 if weight_OI.device.type == "mps" else torch.float64  # mps has no float64
        columns = columns_UC.flatten().to(weight_OI.device)  # a unit's channels become neighbours
        hessian_II = whole.comoment_II[columns][:, columns].to(wide) / whole.num_tokens
        scale = hessian_II.diagonal().mean()
        if scale == 0:  # nothing ever changes, and the bias alone replaces any unit
            return torch.zeros(columns_UC.shape)
        hessian_II.diagonal().add_(self.ridge * scale)
        try:
            cost_U = _costs_in_turn(weight_OI[:, columns].to(wide), torch.linalg.inv(hessian_II), columns_UC.shape[1])
        except torch.linalg.LinAlgError as error:
            raise ValueError(f"metric.ridge={self.ridge}: too small for a singular covariance; try 0.01") from error
        return (cost_U / columns_UC.shape[1]).float()[:, None].expand(columns_UC.shape)


def _costs_in_turn(weight_OI: Tensor, inverse_II: Tensor, channels: int) -> Tensor:
    """cost_U of every unit when its turn to leave comes; a unit owns `channels` neighbouring channels."""
    left_U = torch.arange(weight_OI.shape[1] // channels, device=weight_OI.device)
    cost_U, floor = torch.zeros(len(left_U), dtype=weight_OI.dtype, device=weight_OI.device), 0.0
    at_once = math.ceil(len(left_U) / STEPS)
    while len(left_U):
        now_U = _costs(weight_OI, inverse_II, channels)
        leaving = now_U.argsort(stable=True)[:at_once]
        cost_U[left_U[leaving]] = now_U[leaving].clamp(min=floor)
        floor = float(cost_U[left_U[leaving]].max())
        stays_U = torch.ones(len(left_U), dtype=torch.bool, device=left_U.device)
        stays_U[leaving] = False
        left_U, stays_I = left_U[stays_U], stays_U.repeat_interleave(channels)
        weight_OI, inverse_II = _without(weight_OI, inverse_II, stays_I)
    return cost_U


def _costs(weight_OI: Tensor, inverse_II: Tensor, channels: int) -> Tensor:
    """cost_U = tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ)."""
    units = weight_OI.shape[1] // channels
    blocks_CCU = inverse_II.view(units, channels, units, channels).diagonal(dim1=0, dim2=2)
    weight_UCO = weight_OI.T.reshape(units, channels, -1)
    solved_UCO: Tensor = torch.linalg.solve(blocks_CCU.permute(2, 0, 1), weight_UCO)
    return (solved_UCO * weight_UCO).sum(dim=(1, 2))


def _without(weight_OI: Tensor, inverse_II: Tensor, stays_I: Tensor) -> tuple[Tensor, Tensor]:
    """weight_OK and inverse_KK: the best weights of the channels that stay, and the inverse of their part of H."""
    inverse_LI = inverse_II[~stays_I]
    map_LK = torch.linalg.solve(inverse_LI[:, ~stays_I], inverse_LI[:, stays_I])
    weight_OK = weight_OI[:, stays_I] - weight_OI[:, ~stays_I] @ map_LK
    return weight_OK, inverse_II[stays_I][:, stays_I] - inverse_LI[:, stays_I].T @ map_LK
