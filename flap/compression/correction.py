"""What is added to a compressed block, so that it puts out what the dense one does, from the input that it really gets.

Legend: O output channels · K kept input channels of the output projection.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flap.calibration import Moments, merge
from flap.compression.linear import Regression, held_out_error


class Correction(NamedTuple):
    """What the correction of a block does; ridge None: it is a constant, or nothing where both errors are equal.

    Errors are mean squared distances to what the dense block puts out, on held-out calibration tokens.
    """

    ridge: float | None
    held_out_error: float
    held_out_error_before: float


class Addition(NamedTuple):
    """What is added to weight and bias (float32), and what is reported."""

    slope_OK: Tensor
    shift_O: Tensor
    correction: Correction


def correct(fitting: Moments, held_out: Moments, inputs: int, ridges: tuple[float, ...]) -> Addition:
    """Of nothing, a constant and one map for each ridge, what leaves the smallest error on the held-out tokens.

    The moments are those of x_K (`inputs` channels) and the residual r_O = dense output - compressed output, side by
    side. As in least squares on r, slope = C_rx (C_xx + ridge · mean(diag C_xx) · 1)⁻¹ and shift = mean_r - slope
    mean_x; a large ridge leaves the compressed block as it is, not its weights at zero. What is chosen is fitted again
    on all tokens.
    """
    known, unseen = Regression.between(fitting, inputs), Regression.between(held_out, inputs)
    whole = Regression.between(merge(fitting, held_out), inputs)
    level_OK, zero_O = torch.zeros_like(known.cross_KO.T), torch.zeros_like(known.mean_O)
    before, shifted = unseen.error(level_OK, zero_O), unseen.error(level_OK, known.mean_O)
    mapped, ridge = min(((held_out_error(known, unseen, ridge), ridge) for ridge in ridges), default=(math.inf, 0.0))
    slope_OK = whole.slope(ridge) if mapped < min(before, shifted) else None
    if slope_OK is not None:
        return Addition(slope_OK, whole.intercept(slope_OK), Correction(ridge, mapped, before))
    if shifted < before:
        return Addition(level_OK, whole.mean_O, Correction(None, shifted, before))
    return Addition(level_OK, zero_O, Correction(None, before, before))
