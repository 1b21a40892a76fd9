"""Linear compensation: a least-squares map predicts the removed channels from the kept channels.

Every fifth calibration window is held out, so that compensations can be tested on it. The tokens of
the held-out windows are called held-out tokens, and the tokens of all other windows are called
fitting tokens. The option structure=search runs trials: a trial prunes one block, which is the
attention or the MLP of a layer, and measures the effect on the predictions of held-out tokens.

A removal divides the input channels into kept and removed channels. If no map is better, FLAP's
bias is used instead: it replaces each removed channel with its mean. A fit report contains the
chosen ridge, and the errors on held-out tokens.

Legend of tensor suffixes: O: output channels · I: input channels · K: kept input channels ·
P: removed input channels.
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

# The ridges (regularisation strengths) that are tried, as multiples of the mean variance of the
# input channels.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TRIAL_RIDGE = 1e-2
# Minimum number of fitting tokens per input channel. A map that is fitted on fewer tokens may fit
# noise. Then even a trial of structure=search compares the map with FLAP's bias on held-out tokens,
# and uses the better of the two.
ENOUGH_TOKENS = 2


@dataclass(frozen=True)
class LinearCompensation(Compensation):
    """A least-squares map predicts the removed channels from the kept channels.

    The map is computed as in OBC (Optimal Brain Compression, Frantar and Alistarh 2022).

        W' = W_K + A,  b' = b + W_P · mean_P − A · mean_K
        A = W_P C_PK (C_KK + ridge · mean(diag C) · 1)⁻¹

    W (O, I) and b are the weight and bias of the output projection before pruning. W' and b' are
    its weight and bias after pruning. W_K (O, K) and W_P (O, P) are the columns of W for the kept
    and for the removed channels. C (I, I) and mean (I) are the covariance and the mean of the
    channels, and 1 is the identity matrix. From the kept channels x_K of a token, A predicts
    W_P x_P, which is the contribution of the token's removed channels x_P to the output. FLAP's
    bias (`BiasCompensation`) is the special case A = 0.

    If no ridge is given, a map A is fitted with each of five ridges from 0.0001 to 1 (RIDGES),
    without the held-out tokens. The ridge with the smallest error on the held-out tokens is chosen,
    and A is fitted again on all tokens. FLAP's bias is used instead if no map has a smaller
    held-out error than the bias, or if no map can be computed. A map with a given ridge is compared
    with FLAP's bias in the same way.

    In the trials of structure=search, the ridge is 0.01 (TRIAL_RIDGE) if no ridge is given. The map
    is fitted without the held-out tokens, because trials are measured on some of these tokens. In
    trials, the map is compared with FLAP's bias only if there are fewer than 2 (ENOUGH_TOKENS)
    fitting tokens per channel.

        python -m flap compensation=linear compensation.ridge=0.01
    """

    needs_covariance: ClassVar[bool] = True
    # the ridge as a multiple of the mean variance of the input channels, >= 0; None chooses the
    # ridge with the smallest error on held-out tokens
    ridge: float | None = None

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
        """Return, for each removal, the new weight and the vector to add to the bias.

        The new weight is W_K + A, and the vector is W_P mean_P - A mean_K. A is the least-squares
        map, and W_K and W_P are the columns of the weight for the kept and the removed channels.
        To save time, the removals are divided into chains. For each ridge, all removals of a chain
        share the Cholesky factor of the covariance plus the ridge.
        """
        assert statistics is not None and statistics.parts is not None
        fitting, held_out = map(Covariance.of, statistics.parts)
        all_tokens = fitting if trial else Covariance.of(*statistics.parts)
        few_tokens = fitting.num_tokens < ENOUGH_TOKENS * weight_OI.shape[1]
        ridges = self._candidate_ridges(trial)

        fits: dict[int, Fit] = {}
        for chain in chains(removals):
            nested = _Nested(weight_OI, [removals[k] for k in chain])
            if trial and not few_tokens:
                reports = [FitReport(ridges[0], math.nan, math.nan)] * len(chain)
            else:
                reports = nested.choose(ridges, fitting, held_out)
            fits.update(zip(chain, nested.fits(reports, all_tokens, quick=trial), strict=True))
        return [fits[k] for k in range(len(removals))]

    def _candidate_ridges(self, trial: bool) -> tuple[float, ...]:
        if self.ridge is not None:
            return (self.ridge,)
        return (TRIAL_RIDGE,) if trial else RIDGES


@dataclass(frozen=True)
class _Nested:
    """Fits an output projection for each removal in a chain of removals (`chains`).

    Only one Cholesky factor of a covariance is in memory at a time.
    """

    weight_OI: Tensor
    removals: Sequence[Removal]

    def choose(
        self, ridges: Sequence[float], fitting: Covariance, held_out: Covariance
    ) -> list[FitReport]:
        """For each removal, choose the best ridge on held-out tokens, and return a fit report.

        The maps are fitted on the fitting tokens. The ridge in a report is None if no map has
        a smaller error on held-out tokens than FLAP's bias. The ridge is also None if no held-out
        token reaches the projection, because then no map can be tested.

        fitting, held_out: the covariances over the fitting tokens and over the held-out tokens.
        """
        if not held_out.num_tokens:
            return [FitReport(None, 0.0, 0.0)] * len(self.removals)
        best = []
        for removal in self.removals:
            error = held_out.error(self._lost(removal, None), fitting.mean_I)
            best.append(FitReport(None, error, error))
        for ridge in ridges:
            slopes = self._slopes(self.removals, ridge, fitting, quick=True)
            for k, slope_OK in enumerate(slopes):
                error = held_out.error(self._lost(self.removals[k], slope_OK), fitting.mean_I)
                # if the error is nan, the comparison is false, and the map is not chosen
                if slope_OK is not None and error < best[k].held_out_error:
                    best[k] = best[k]._replace(ridge=ridge, held_out_error=error)
        return best

    def fits(self, reports: Sequence[FitReport], covariance: Covariance, quick: bool) -> list[Fit]:
        """Return the fit for each removal, computed with the ridge in the report of this removal.

        If the ridge is None, FLAP's bias is used instead of a map.

        covariance: the covariance over the tokens on which maps are fitted.
        quick: whether to factorise the covariance in float32 if possible (see `Elimination.of`).
        """
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
        """Yield the least-squares map A for each removal, or None if there is no map.

        There is no map if `ridge` is None, or if A cannot be computed. Then FLAP's bias is used
        instead.
        """
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
            error = report.held_out_error_of_bias
            return Fit(weight_OK, bias_O, FitReport(None, error, error))
        weight_OK += slope_OK
        bias_O -= slope_OK @ mean_I[kept_K]
        return Fit(weight_OK, bias_O, report)

    def _lost(self, removal: Removal, slope_OK: Tensor | None) -> Tensor:
        """Return the matrix that maps input channels to the output error of pruning (lost_OI).

        Its columns for the removed channels are the columns of the weight. Its columns for the kept
        channels are -slope_OK, or 0 if FLAP's bias is used because there is no map.
        """
        lost_OI = self.weight_OI.clone()
        lost_OI[:, removal.kept_K] = 0 if slope_OK is None else -slope_OK
        return lost_OI


def chains(removals: Sequence[Removal]) -> list[list[int]]:
    """Divide removals into chains, and return the indices of the removals in each chain.

    In a chain, each removal removes all channels of the previous removal, and possibly more.
    """
    pruned = [set(removal.pruned_P.tolist()) for removal in removals]
    nested: list[list[int]] = []
    for k in sorted(range(len(removals)), key=lambda k: len(pruned[k])):
        for chain in nested:
            if pruned[k].issuperset(pruned[chain[-1]]):
                chain.append(k)
                break
        else:
            nested.append([k])
    return nested


def order(chain: Sequence[Removal]) -> Tensor:
    """Return all input channels, sorted by the number of removals in a chain that remove them.

    Channels that no removal removes come first. In a chain, each removal removes all channels of
    the previous removal (see `chains`). So in this order, the kept channels of every removal come
    before its removed channels.
    """
    channels = sum(map(len, chain[0]))
    count_I = torch.zeros(channels, dtype=torch.int64, device=chain[0].kept_K.device)
    for removal in chain:
        count_I[removal.pruned_P] += 1
    return count_I.argsort(stable=True)
