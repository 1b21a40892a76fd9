"""The covariance of the input channels of an output projection, computed from the co-moments where it is needed.

A covariance has I² elements, 0.3 GB for the MLP of a model of 1B parameters. None is made as a whole: what is made
from it, one matrix to factorise, is made from strips of its rows.

Legend: I input channels, R and C some of them, as rows and columns · O output channels.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from flap.method.calibration.statistics import Statistics, merge
from flap.method.calibration.symmetric import STRIP, Symmetric


@dataclass(frozen=True)
class Covariance:
    """The mean and the covariance of the input channels over the tokens of one or more disjoint sets, in float32.

    The covariance is Σ (comoment + T · (mean - mean of all) (mean - mean of all)ᵀ) / Σ T, exact in real numbers, with
    the comoment, the mean and the tokens T of each set (Chan, Golub and LeVeque 1979); 0 if there is no token.
    """

    num_tokens: int
    mean_I: Tensor
    comoments: tuple[Symmetric, ...]
    shifts: tuple[
        tuple[Tensor, Tensor], ...
    ]  # of each set: T · (mean - mean of all), and the same without T

    @classmethod
    def of(cls, *sets: Statistics) -> "Covariance":
        """Return the covariance over the tokens of these sets."""
        merged = reduce(merge, sets)
        comoments = tuple(one.comoments for one in sets if one.comoments is not None)
        assert len(comoments) == len(sets)
        steps = [one.mean_I - merged.mean_I for one in sets]
        shifts = tuple(
            ((step * one.num_tokens).float(), step.float())
            for one, step in zip(sets, steps, strict=True)
        )
        return cls(merged.num_tokens, merged.mean_I.float(), comoments, shifts)

    def block(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """Return covariance_RC. All I columns of its rows are in memory at a time."""
        block_RI = self.comoments[0].rows(rows_R)
        for comoment in self.comoments[1:]:
            block_RI += comoment.rows(rows_R)
        for scaled_I, step_I in self.shifts:
            block_RI.addr_(scaled_I[rows_R], step_I)
        return block_RI.div_(max(self.num_tokens, 1)).index_select(1, columns_C)

    def diagonal(self) -> Tensor:
        """Return the variances of the channels."""
        variance_I = torch.stack([comoment.diagonal() for comoment in self.comoments]).sum(0)
        for scaled_I, step_I in self.shifts:
            variance_I += scaled_I * step_I
        return variance_I / max(self.num_tokens, 1)

    def hessian(self, order_I: Tensor, ridge: float, dtype: torch.dtype) -> Tensor:
        """Return H = C + ridge · mean(diag C) · 1 with the channels in an order.

        It is column-major: LAPACK factorises and inverts such a matrix in place.
        """
        hessian_II = torch.empty(len(order_I), len(order_I), dtype=dtype, device=order_I.device)
        for rows_R, strip_RI in zip(order_I.split(STRIP), hessian_II.split(STRIP), strict=True):
            strip_RI.copy_(self.block(rows_R, order_I))
        hessian_II.diagonal().add_(ridge * hessian_II.diagonal().mean())
        return hessian_II.mT  # symmetric

    def error(self, map_OI: Tensor, origin_I: Tensor) -> float:
        """Return E ‖map · (x - origin)‖² over the tokens' channels x."""
        spread = torch.stack([comoment.form(map_OI) for comoment in self.comoments]).sum()
        for scaled_I, step_I in self.shifts:
            spread += (map_OI @ scaled_I) @ (map_OI @ step_I)
        offset_O = map_OI @ (self.mean_I - origin_I)
        return (spread / max(self.num_tokens, 1) + offset_O.square().sum()).item()
