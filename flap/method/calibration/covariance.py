"""Compute the covariance of an output projection's input channels from co-moments, on demand.

The co-moment of two channels is the sum, over tokens, of the product of their deviations from their
means.

A covariance matrix has I² elements, which take 0.3 GB for the MLP of a model with 1B parameters. So
only strips of its rows are computed, one after another. Only `Covariance.hessian` fills a full
matrix from these strips, because the metric OBS factorises this matrix to score units.

Legend: I: input channels · R: channels selected as rows · C: channels selected as columns · O:
output channels.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from flap.method.calibration.statistics import Statistics, merge
from flap.method.calibration.symmetric import STRIP, Symmetric


@dataclass(frozen=True)
class Covariance:
    """The mean and covariance of the input channels over disjoint sets of tokens, in float32.

    Each set has a co-moment matrix, a mean and a number of tokens T. μ is the mean over the tokens
    of all sets. The covariance is Σ (co-moment + T · (mean - μ) (mean - μ)ᵀ) / Σ T, summed over the
    sets (Chan, Golub and LeVeque 1979). This is the covariance over the tokens of all sets, except
    for rounding errors. If there are no tokens, the covariance is 0.
    """

    num_tokens: int
    mean_I: Tensor
    comoments: tuple[Symmetric, ...]
    shifts: tuple[tuple[Tensor, Tensor], ...]  # T · (mean - μ) and mean - μ of each set

    @classmethod
    def of(cls, *sets: Statistics) -> "Covariance":
        """Return the covariance over the tokens of all these sets, which must be disjoint."""
        merged = reduce(merge, sets)
        comoments = list[Symmetric]()
        shifts = list[tuple[Tensor, Tensor]]()
        for statistics in sets:
            assert statistics.comoments is not None
            comoments.append(statistics.comoments)
            step_I = statistics.mean_I - merged.mean_I
            shifts.append(((step_I * statistics.num_tokens).float(), step_I.float()))
        return cls(merged.num_tokens, merged.mean_I.float(), tuple(comoments), tuple(shifts))

    def block(self, rows_R: Tensor, columns_C: Tensor) -> Tensor:
        """Return the covariances of the channels `rows_R` with the channels `columns_C`.

        While this function runs, all I columns of the rows are in memory.
        """
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
        """Return the regularised covariance matrix H, with the channels in the order `order_I`.

            H = C + ridge · mean(diag C) · 1

        C is the covariance matrix, and 1 is the identity matrix. H is stored column by column,
        because LAPACK factorises and inverts such matrices in place.
        """
        hessian_II = torch.empty(len(order_I), len(order_I), dtype=dtype, device=order_I.device)
        for rows_R, strip_RI in zip(order_I.split(STRIP), hessian_II.split(STRIP), strict=True):
            strip_RI.copy_(self.block(rows_R, order_I))
        hessian_II.diagonal().add_(ridge * hessian_II.diagonal().mean())
        # the transpose is stored column by column, and has the same values, because H is symmetric
        return hessian_II.mT

    def error(self, map_OI: Tensor, origin_I: Tensor) -> float:
        """Return the mean squared norm of map · (x - origin), taken over all tokens.

        map: the matrix `map_OI`. x: the values of the channels at a token.
        """
        spread = torch.stack([comoment.form(map_OI) for comoment in self.comoments]).sum()
        for scaled_I, step_I in self.shifts:
            spread += (map_OI @ scaled_I) @ (map_OI @ step_I)
        offset_O = map_OI @ (self.mean_I - origin_I)
        return (spread / max(self.num_tokens, 1) + offset_O.square().sum()).item()
