"""Channel statistics as pure functions: moments of a batch, an exact merge of two, and what the metrics read.

Legend: I input channels of an output projection · T tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# Merged moments are held in this precision; a batch is reduced in float32, two-pass.
ACCUMULATOR = torch.float64


@dataclass(frozen=True)
class Statistics:
    """What calibration knows of each input channel j of one output projection (float32).

    mean_I: mean over all calibration tokens. var_I: sample variance, divisor T - 1. msq_I: mean square.
    parts: moments with co-moments of the tokens to fit on and of those held out; together they are all. None where
    nobody asked for covariances.
    """

    mean_I: Tensor
    var_I: Tensor
    msq_I: Tensor
    num_tokens: int
    parts: "tuple[Moments, Moments] | None" = None

    def to(self, device: torch.device) -> "Statistics":
        """The same on another device: a weight may lie on another one than its neighbours."""
        moved = _moved(self, device)
        if self.parts is None:
            return moved
        fitting, held_out = self.parts
        return replace(moved, parts=(_moved(fitting, device), _moved(held_out, device)))


@dataclass(frozen=True)
class Moments:
    """Token count, mean and summed squared deviation of each channel, for any set of tokens.

    comoment_II: summed products of deviations of every two channels (float32), or None where nobody asked.
    """

    num_tokens: int
    mean_I: Tensor
    deviation_I: Tensor
    comoment_II: Tensor | None = None


def _moved(values: T, device: torch.device) -> T:
    tensors = {one.name: getattr(values, one.name) for one in fields(values)}  # type: ignore[arg-type]
    moved = {name: tensor.to(device) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    return replace(values, **moved)  # type: ignore[type-var]


def moments(activation: Tensor, covariance: bool = False) -> Moments:
    """Moments of one batch of activations (…, I); every leading position is a token. covariance: with co-moments."""
    activation_TI = activation.reshape(-1, activation.shape[-1]).float()
    num_tokens = activation_TI.shape[0]
    mean_I = activation_TI.mean(0)
    centred_TI = activation_TI - mean_I
    # float32 rounds the mean: what is left of it after centring corrects mean and deviation
    wide = torch.float32 if activation.device.type == "mps" else ACCUMULATOR  # mps has no float64
    error_I = centred_TI.mean(0).to(wide)
    comoment_II = None
    if covariance:
        comoment_II = (centred_TI.T @ centred_TI).addr_(error_I.float(), error_I.float(), alpha=-num_tokens)
    deviation_I = centred_TI.square_().sum(0).to(wide) - num_tokens * error_I.square()
    return Moments(num_tokens, mean_I.to(wide) + error_I, deviation_I.clamp_(min=0), comoment_II)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of tokens (Chan, Golub and LeVeque 1979): exact for any split."""
    num_tokens = a.num_tokens + b.num_tokens
    step_I = b.mean_I - a.mean_I
    share = b.num_tokens / num_tokens
    deviation_I = a.deviation_I + b.deviation_I + step_I.square() * (a.num_tokens * share)
    comoment_II = None
    if a.comoment_II is not None and b.comoment_II is not None:
        step, weight = step_I.float(), a.num_tokens * share
        comoment_II = (a.comoment_II + b.comoment_II).addr_(step, step, alpha=weight)
    return Moments(num_tokens, a.mean_I + step_I * share, deviation_I, comoment_II)


def statistics(m: Moments, parts: tuple[Moments, Moments] | None = None) -> Statistics:
    """Mean, sample variance and mean square from the merged moments; at least two tokens."""
    var_I = m.deviation_I / (m.num_tokens - 1)
    msq_I = m.deviation_I / m.num_tokens + m.mean_I.square()
    return Statistics(m.mean_I.float(), var_I.float(), msq_I.float(), m.num_tokens, parts)
