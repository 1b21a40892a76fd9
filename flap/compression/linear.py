"""Linear compensation: a least-squares fit predicts the removed channels from the kept ones, as in OBC.

Legend: O output channels · I input channels · P pruned, K kept channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flap.calibration import Statistics, merge
from flap.compression.compensation import Compensation, Fit, FitReport, Removal
from flap.compression.elimination import Elimination
from flap.config import require

# The ridges to choose from, in units of the mean variance of the block's channels; the one of trials is in the middle.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TRIAL_RIDGE = 1e-2
# Of fewer tokens a channel, a map may learn the noise: it is used only if it is better than the bias on other tokens.
ENOUGH_TOKENS = 2


@dataclass(frozen=True)
class Moments:
    """The mean and the covariance of the input channels over a set of tokens."""

    mean_I: Tensor
    covariance_II: Tensor

    @classmethod
    def of(cls, statistics: Statistics, order_I: Tensor) -> "Moments":
        """Return the moments with the channels in an order; zeros if there is no token."""
        assert statistics.comoment_II is not None
        covariance_II = statistics.comoment_II[order_I][:, order_I] / max(int(statistics.num_tokens), 1)
        return cls(statistics.mean_I[order_I].float(), covariance_II)

    def error(self, lost_OI: Tensor, fitted_on: "Moments") -> float:
        """Return E ‖lost · (x - mean of the fit)‖² over these tokens: the squared output error that a fit leaves."""
        spread = ((lost_OI @ self.covariance_II) * lost_OI).sum()
        return (spread + (lost_OI @ (self.mean_I - fitted_on.mean_I)).square().sum()).item()


@dataclass(frozen=True)
class LinearCompensation(Compensation):
    """Linear compensation: weight W_K + A, bias + W_P mean_P - A mean_K, with a ridge least-squares map A.

    A = W_P C_PK (C_KK + ridge · mean(diag C) · 1)⁻¹ maps x_K to W_P x_P; FLAP's bias is A = 0. ridge: None = the one of
    RIDGES whose map, fitted without the held-out tokens, has the smallest error on them; then A is fitted on all
    tokens. If no map has a smaller held-out error than the bias, or none exists, the bias is used. In trials the ridge
    is TRIAL_RIDGE, and the map is not compared with the bias if there are enough tokens.
    """

    needs_covariance: ClassVar[bool] = True
    ridge: float | None = None

    def __post_init__(self) -> None:
        valid = self.ridge is None or 0 <= self.ridge < math.inf
        require(valid, "compensation.ridge", self.ridge, "a number >= 0, or null to choose it")

    def fits(
        self, weight_OI: Tensor, statistics: Statistics | None, removals: Sequence[Removal], trial: bool = False
    ) -> list[Fit]:
        """Return for each removal the weight W_K + A, the addition W_P mean_P - A mean_K to the bias, and the report.

        Removals of which one contains the other share their factorisations.
        """
        assert statistics is not None and statistics.parts is not None
        fits: dict[int, Fit] = {}
        for chain in _chains(removals):
            order_I = _order([removals[k] for k in chain])
            removed = [len(removals[k].pruned_P) for k in chain]
            judged = not trial or int(statistics.num_tokens) < ENOUGH_TOKENS * len(order_I)
            ridges = self._ridges(trial)
            nested = _Nested(weight_OI[:, order_I], order_I)
            if judged:
                reports = nested.choose(removed, ridges, statistics.parts)
            else:
                reports = [FitReport(ridges[0], math.nan, math.nan)] * len(chain)
            all_tokens = Moments.of(merge(*statistics.parts), order_I)
            fits |= zip(chain, nested.fits(removed, reports, all_tokens, quick=trial), strict=True)
        return [fits[k] for k in range(len(removals))]

    def _ridges(self, trial: bool) -> tuple[float, ...]:
        if self.ridge is not None:
            return (self.ridge,)
        return (TRIAL_RIDGE,) if trial else RIDGES


@dataclass(frozen=True)
class _Nested:
    """The fits of one projection for several numbers of removed channels. One factor is in memory at a time."""

    weight_OI: Tensor  # in removal order
    order_I: Tensor

    def choose(
        self, removed: Sequence[int], ridges: Sequence[float], parts: tuple[Statistics, Statistics]
    ) -> list[FitReport]:
        """Return for each number of removed channels the ridge with the smallest held-out error; None: the bias.

        The error falls and then rises with the ridge, so the ridges behind one that is no better are not tried.
        """
        fitting, held_out = (Moments.of(part, self.order_I) for part in parts)
        of_bias = [held_out.error(self._lost(count, None), fitting) for count in removed]
        best = [FitReport(None, error, error) for error in of_bias]
        middle = len(ridges) // 2
        for direction in (ridges[middle:], ridges[:middle][::-1]):  # from the middle on, as long as errors fall
            for ridge in direction:
                improved = False
                for k, slope_OK in enumerate(self._slopes(removed, ridge, fitting, quick=True)):
                    error = held_out.error(self._lost(removed[k], slope_OK), fitting)
                    if slope_OK is not None and error < best[k].held_out_error:  # not so for a nan
                        best[k], improved = FitReport(ridge, error, of_bias[k]), True
                if not improved and ridge != ridges[middle]:
                    break
        return best

    def fits(self, removed: Sequence[int], reports: Sequence[FitReport], moments: Moments, quick: bool) -> list[Fit]:
        """Return the fit for each number of removed channels, with the ridge of its report; None: the bias."""
        fits: dict[int, Fit] = {}
        for ridge in {report.ridge for report in reports}:
            which = [k for k, report in enumerate(reports) if report.ridge == ridge]
            counts = [removed[k] for k in which]
            slopes = [None] * len(counts) if ridge is None else self._slopes(counts, ridge, moments, quick)
            for k, slope_OK in zip(which, slopes, strict=True):
                fits[k] = self._fit(removed[k], slope_OK, reports[k], moments)
        return [fits[k] for k in range(len(removed))]

    def _fit(self, removed: int, slope_OK: Tensor | None, report: FitReport, moments: Moments) -> Fit:
        if slope_OK is None:
            report = FitReport(None, report.held_out_error_of_bias, report.held_out_error_of_bias)
        ascending_K = self.order_I[removed:].argsort()
        kept_OK = self.weight_OI[:, removed:]
        weight_OK = (kept_OK if slope_OK is None else kept_OK + slope_OK)[:, ascending_K]
        return Fit(weight_OK, self._lost(removed, slope_OK) @ moments.mean_I, report)

    def _slopes(self, removed: Sequence[int], ridge: float, moments: Moments, quick: bool) -> list[Tensor | None]:
        elimination = Elimination.of(self.weight_OI, moments.covariance_II, ridge, quick)
        return [elimination.slope(count) for count in removed]

    def _lost(self, removed: int, slope_OK: Tensor | None) -> Tensor:
        """Return lost_OI = (W_P, -A): the map from all channels to the output that the pruned projection lacks."""
        kept_OK = torch.zeros_like(self.weight_OI[:, removed:]) if slope_OK is None else -slope_OK
        return torch.cat([self.weight_OI[:, :removed], kept_OK], dim=1)


def _chains(removals: Sequence[Removal]) -> list[list[int]]:
    """Return the indices of the removals in chains in which each one contains those before it."""
    chains: list[list[int]] = []
    for k in sorted(range(len(removals)), key=lambda k: len(removals[k].pruned_P)):
        pruned = set(removals[k].pruned_P.tolist())
        nested = (chain for chain in chains if pruned.issuperset(removals[chain[-1]].pruned_P.tolist()))
        chain = next(nested, None)
        if chain is None:
            chains.append([k])
        else:
            chain.append(k)
    return chains


def _order(chain: Sequence[Removal]) -> Tensor:
    """Return all channels: those that the first removal of a chain removes, then those that the next one adds, …"""
    rank_I = torch.full((sum(map(len, chain[0])),), len(chain), device=chain[0].kept_K.device)
    for rank, (_, pruned_P) in reversed(list(enumerate(chain))):
        rank_I[pruned_P] = rank
    return rank_I.argsort(stable=True)
