"""Linear compensation: a least-squares fit predicts the removed channels from the kept ones, as in OBC.

Legend: O output channels · I input channels · P pruned, K kept channels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.config import require
from flap.method.calibration import Statistics
from flap.method.calibration.covariance import Covariance
from flap.method.compression.compensation import Compensation, Fit, FitReport, Removal
from flap.method.compression.elimination import Elimination

# The ridges to choose from, in units of the mean variance of the block's channels.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TRIAL_RIDGE = 1e-2
# Of fewer tokens a channel, a map may learn the noise: it is used only if it is better than the bias on other tokens.
ENOUGH_TOKENS = 2


@dataclass(frozen=True)
class LinearCompensation(Compensation):
    """A least-squares fit predicts the removed channels from the kept ones, as in OBC (Frantar and Alistarh 2022).

        W' = W_K + A,  b' = b + W_P · mean_P − A · mean_K,  A = W_P C_PK (C_KK + ridge · mean(diag C) · 1)⁻¹

    W_K (O, K), W_P (O, P): the columns of the kept and of the removed channels. C (I, I), mean (I): covariance and mean
    of the channels. A maps x_K to W_P x_P; FLAP's bias is A = 0. Without a ridge it is the one of RIDGES whose map,
    fitted without the held-out tokens, has the smallest error on them; then A is fitted on all tokens. If no map has a
    smaller held-out error than the bias, or none exists, the bias is used. In trials the ridge is TRIAL_RIDGE, the map
    is not compared with the bias if there are enough tokens, and it is fitted without the held-out tokens, on some of
    which trials are measured.

        python -m flap compensation=linear compensation.ridge=0.01
    """

    needs_covariance: ClassVar[bool] = True
    ridge: float | None = (
        None  # in units of the mean variance of the block's channels, >= 0; None: chosen
    )

    def __post_init__(self) -> None:
        valid = self.ridge is None or 0 <= self.ridge < math.inf
        require(valid, "compensation.ridge", self.ridge, "a number >= 0, or null to choose it")

    @torch.no_grad()
    def fits(
        self,
        weight_OI: Tensor,
        statistics: Statistics | None,
        removals: Sequence[Removal],
        trial: bool = False,
    ) -> list[Fit]:
        """Return for each removal the weight W_K + A, the addition W_P mean_P - A mean_K to the bias, and the report.

        Removals of which one contains the other share their factorisations.
        """
        assert statistics is not None and statistics.parts is not None
        fitting, held_out = map(Covariance.of, statistics.parts)
        judged = not trial or fitting.num_tokens < ENOUGH_TOKENS * weight_OI.shape[1]
        ridges = (self.ridge,) if self.ridge is not None else (TRIAL_RIDGE,) if trial else RIDGES
        fits = dict[int, Fit]()
        final = fitting if trial else Covariance.of(*statistics.parts)
        for chain in chains(removals):
            nested = _Nested(weight_OI, [removals[k] for k in chain])
            if judged:
                reports = nested.choose(ridges, fitting, held_out)
            else:
                reports = [FitReport(ridges[0], math.nan, math.nan)] * len(chain)
            fits.update(zip(chain, nested.fits(reports, final, quick=trial), strict=True))
        return [fits[k] for k in range(len(removals))]


@dataclass(frozen=True)
class _Nested:
    """The fits of a chain of removals from one projection. One factor is in memory at a time."""

    weight_OI: Tensor
    removals: Sequence[Removal]

    def choose(
        self, ridges: Sequence[float], fitting: Covariance, held_out: Covariance
    ) -> list[FitReport]:
        """Return the best ridge for each removal on held-out tokens; None: the bias, also without such tokens."""
        if (
            not held_out.num_tokens
        ):  # other windows alone reach this member: nothing tells a map from noise
            return [FitReport(None, 0.0, 0.0)] * len(self.removals)
        of_bias = [
            held_out.error(self._lost(removal, None), fitting.mean_I) for removal in self.removals
        ]
        best = [FitReport(None, error, error) for error in of_bias]
        for ridge in ridges:
            for k, slope_OK in enumerate(self._slopes(self.removals, ridge, fitting, quick=True)):
                error = held_out.error(self._lost(self.removals[k], slope_OK), fitting.mean_I)
                if slope_OK is not None and error < best[k].held_out_error:  # not so for a nan
                    best[k] = FitReport(ridge, error, of_bias[k])
        return best

    def fits(self, reports: Sequence[FitReport], covariance: Covariance, quick: bool) -> list[Fit]:
        """Return the fit for each removal, with the ridge of its report; None: the bias."""
        fits: dict[int, Fit] = {}
        for ridge in {report.ridge for report in reports}:
            which = [k for k, report in enumerate(reports) if report.ridge == ridge]
            slopes = self._slopes([self.removals[k] for k in which], ridge, covariance, quick)
            for k, slope_OK in zip(which, slopes, strict=True):
                fits[k] = self._fit(self.removals[k], slope_OK, reports[k], covariance.mean_I)
        return [fits[k] for k in range(len(reports))]

    def _slopes(
        self, removals: Sequence[Removal], ridge: float | None, covariance: Covariance, quick: bool
    ) -> Iterator[Tensor | None]:
        """Yield the slope of each removal."""
        if ridge is None:
            yield from [None] * len(removals)
            return
        elimination = Elimination.of(covariance, order(self.removals), ridge, quick)
        for removal in removals:
            yield elimination.slope(self.weight_OI, removal)

    def _fit(
        self, removal: Removal, slope_OK: Tensor | None, report: FitReport, mean_I: Tensor
    ) -> Fit:
        kept_K, pruned_P = removal
        weight_OK = self.weight_OI[:, kept_K]
        bias_O = self.weight_OI[:, pruned_P] @ mean_I[pruned_P]
        if slope_OK is None:
            report = FitReport(None, report.held_out_error_of_bias, report.held_out_error_of_bias)
        else:
            weight_OK += slope_OK
            bias_O -= slope_OK @ mean_I[kept_K]
        return Fit(weight_OK, bias_O, report)

    def _lost(self, removal: Removal, slope_OK: Tensor | None) -> Tensor:
        """Return lost_OI = (W_P, -A): the map from all channels to the output that the pruned projection lacks."""
        lost_OI = self.weight_OI.clone()
        lost_OI[:, removal.kept_K] = 0 if slope_OK is None else -slope_OK
        return lost_OI


def chains(removals: Sequence[Removal]) -> list[list[int]]:
    """Return the indices of the removals in chains in which each one contains those before it."""
    nested: list[list[int]] = []
    for k in sorted(range(len(removals)), key=lambda k: len(removals[k].pruned_P)):
        pruned = set(removals[k].pruned_P.tolist())
        fitting = (
            chain for chain in nested if pruned.issuperset(removals[chain[-1]].pruned_P.tolist())
        )
        if (chain := next(fitting, None)) is None:
            nested.append([k])
        else:
            chain.append(k)
    return nested


def order(chain: Sequence[Removal]) -> Tensor:
    """Return all channels: those that no removal of a chain removes, then those that only the last one does, …"""
    count_I = torch.zeros(sum(map(len, chain[0])), dtype=torch.int64, device=chain[0].kept_K.device)
    for removal in chain:
        count_I[removal.pruned_P] += 1
    return count_I.argsort(stable=True)
