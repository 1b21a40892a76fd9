"""Channel statistics as pure functions: moments of a batch, an exact merge of two, and what the metrics read.

Legend: I input channels of an output projection · T tokens.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# Merged moments are held in this precision; a batch is reduced in float32, two-pass.
ACCUMULATOR = torch.float64


@dataclass(frozen=True)
class Statistics:
    """What calibration knows of each input channel j of one output projection (float32).

    mean_I: mean over all calibration tokens. var_I: sample variance, divisor T - 1. msq_I: mean square.
    """

    mean_I: Tensor
    var_I: Tensor
    msq_I: Tensor
    num_tokens: int

    def to(self, device: torch.device) -> "Statistics":
        """The same on another device: a weight may lie on another one than its neighbours."""
        tensors = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "num_tokens"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Moments:
    """Token count, mean and summed squared deviation of each channel, for any set of tokens."""

    num_tokens: int
    mean_I: Tensor
    deviation_I: Tensor


def moments(activation: Tensor) -> Moments:
    """Moments of one batch of activations (…, I); every leading position is a token."""
    activation_TI = activation.reshape(-1, activation.shape[-1]).float()
    num_tokens = activation_TI.shape[0]
    mean_I = activation_TI.mean(0)
    centred_TI = activation_TI - mean_I
    # float32 rounds the mean: what is left of it after centring corrects mean and deviation
    wide = torch.float32 if activation.device.type == "mps" else ACCUMULATOR  # mps has no float64
    error_I = centred_TI.mean(0).to(wide)
    deviation_I = centred_TI.square_().sum(0).to(wide) - num_tokens * error_I.square()
    return Moments(num_tokens, mean_I.to(wide) + error_I, deviation_I.clamp_(min=0))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of tokens (Chan, Golub and LeVeque 1979): exact for any split."""
    num_tokens = a.num_tokens + b.num_tokens
    step_I = b.mean_I - a.mean_I
    share = b.num_tokens / num_tokens
    deviation_I = a.deviation_I + b.deviation_I + step_I.square() * (a.num_tokens * share)
    return Moments(num_tokens, a.mean_I + step_I * share, deviation_I)


def statistics(m: Moments) -> Statistics:
    """Mean, sample variance and mean square from the merged moments; at least two tokens."""
    var_I = m.deviation_I / (m.num_tokens - 1)
    msq_I = m.deviation_I / m.num_tokens + m.mean_I.square()
    return Statistics(m.mean_I.float(), var_I.float(), msq_I.float(), m.num_tokens)
