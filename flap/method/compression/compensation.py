"""Compensations, which change an output projection to make up for its removed input channels.

A block is the attention or the MLP of a layer. Every fifth calibration window is held out, so that
compensations can be tested on it. The tokens of the held-out windows are called held-out tokens,
and the tokens of all other windows are called fitting tokens. The option structure=search runs
trials: a trial prunes one block, and measures the effect on the predictions of held-out tokens.
FLAP's bias is the compensation that replaces each removed channel with its mean.

Source: FLAP, arXiv 2312.11983, section 3.4.

Legend of tensor suffixes: O: output channels · I: input channels · K: kept input channels ·
P: removed input channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from flap.method.calibration import Statistics


class Removal(NamedTuple):
    """Indices of the kept and the removed input channels of a projection, both ascending."""

    kept_K: Tensor
    pruned_P: Tensor


class FitReport(NamedTuple):
    """How well a linear map predicts the part of a block's output that comes from removed channels.

    The errors are mean squared errors of the block's output on held-out tokens; lower is better. If
    no held-out token reaches the block, which can be an expert, the errors are 0. In trials of
    structure=search, the errors are not computed (nan), unless there are so few fitting tokens that
    a map may fit noise (`linear.ENOUGH_TOKENS`).
    """

    # The ridge (regularisation strength) of the chosen map; None if FLAP's bias
    # (`BiasCompensation`) is used instead, because no map has a smaller held-out error than the
    # bias, or no map can be computed or tested.
    ridge: float | None
    held_out_error: float  # error with the chosen map, or with FLAP's bias if no map is chosen
    held_out_error_of_bias: float  # error with FLAP's bias


class Fit(NamedTuple):
    """An output projection that a compensation has fitted to its kept channels, in float32."""

    weight_OK: Tensor
    bias_O: Tensor | None  # the vector that is added to the old bias; None if nothing is added
    report: FitReport | None = None  # the errors of a linear fit; None for other compensations


@dataclass(frozen=True)
class Compensation(ABC):
    """Base class of compensations, which fit output projections to make up for removed channels."""

    needs_statistics: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = True

    @abstractmethod
    def fits(
        self,
        weight_OI: Tensor,
        statistics: Statistics | None,
        removals: Sequence[Removal],
        trial: bool = False,
    ) -> list[Fit]:
        """Fit an output projection separately for each removal, and return the fits in order.

        statistics: the statistics of the input channels; None only if `needs_statistics` is False.
        removals: the channels that stay and the channels that are removed, once for each fit.
        trial: whether the fits are only for a trial of structure=search. A trial is measured on
            held-out tokens, so a compensation that can fit noise must be fitted without these
            tokens in a trial. The compensation may also skip expensive choices in a trial, such as
            the choice of the best ridge.
        """


@dataclass(frozen=True)
class NoCompensation(Compensation):
    """No compensation: the removed channels are replaced with zeros.

        W' = W_K,  b' = b

    W (O, I) and b are the weight and bias of the output projection before pruning. W' and b' are
    its weight and bias after pruning. W_K (O, K) are the columns of W for the kept channels.

        python -m flap compensation=none
    """

    needs_statistics: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = False

    def fits(
        self,
        weight_OI: Tensor,
        statistics: Statistics | None,
        removals: Sequence[Removal],
        trial: bool = False,
    ) -> list[Fit]:
        return [Fit(weight_OI[:, kept_K], None) for kept_K, _ in removals]


@dataclass(frozen=True)
class BiasCompensation(Compensation):
    """FLAP's bias, the default: each removed channel is replaced with its mean.

        W' = W_K,  b' = b + W_P · mean_P

    W (O, I) and b are the weight and bias of the output projection before pruning. W' and b' are
    its weight and bias after pruning. W_K (O, K) and W_P (O, P) are the columns of W for the kept
    and for the removed channels. mean_P are the means of the removed channels over the calibration
    tokens. Source: FLAP, arXiv 2312.11983, section 3.4.

        python -m flap compensation=bias
    """

    def fits(
        self,
        weight_OI: Tensor,
        statistics: Statistics | None,
        removals: Sequence[Removal],
        trial: bool = False,
    ) -> list[Fit]:
        assert statistics is not None
        mean_I = statistics.mean_I.float()
        fits = []
        for kept_K, pruned_P in removals:
            bias_O = weight_OI[:, pruned_P] @ mean_I[pruned_P]
            fits.append(Fit(weight_OI[:, kept_K], bias_O))
        return fits
