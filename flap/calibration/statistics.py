"""The channel statistics: how they are computed from a batch of activations, and how two of them are merged exactly.

Legend: I input channels of an output projection · T tokens · E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from flap.calibration.symmetric import Symmetric
from flap.models import Pair
from flap.models.devices import widest_float


@dataclass(frozen=True)
class Statistics:
    """The statistics of the input channels of one output projection over a set of tokens.

    num_tokens: one count, or one count a channel for experts, which see different tokens. mean_I: the mean.
    deviation_I: the sum of squared deviations from the mean; both in float64. All are 0 if there is no token.
    comoments: the sums of products of the deviations of two channels; one matrix for each expert, as channels of
    different experts see different tokens; none without covariances.
    parts: the statistics of the fitting tokens and of the held-out tokens, with co-moments; None where no fit
    needs them apart.
    """

    num_tokens: int | Tensor
    mean_I: Tensor
    deviation_I: Tensor
    comoments: tuple[Symmetric, ...] = ()
    parts: "tuple[Statistics, Statistics] | None" = None

    @property
    def var_I(self) -> Tensor:
        """The sample variance, divisor T - 1, in float32; 0 for a single token."""
        return (self.deviation_I / _at_least_one(self.num_tokens - 1)).float()

    @property
    def msq_I(self) -> Tensor:
        """The mean square, in float32."""
        return (self.deviation_I / _at_least_one(self.num_tokens) + self.mean_I.square()).float()

    def to(self, device: torch.device) -> "Statistics":
        """Return the statistics on another device, such as the device of the weight."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: _moved(tensor, device) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        parts = self.parts and (self.parts[0].to(device), self.parts[1].to(device))
        return replace(self, **moved, comoments=tuple(one.to(device) for one in self.comoments), parts=parts)

    def of_experts(self, num_experts: int) -> "list[Statistics]":
        """Return the statistics of each expert; in these, the channels of the experts are concatenated."""
        if isinstance(self.num_tokens, int):  # of a plain MLP
            return [self]
        counts_E = self.num_tokens.reshape(num_experts, -1)[:, 0].tolist()
        comoments = [self.comoments[e : e + 1] for e in range(num_experts)]
        columns = (map(int, counts_E), self.mean_I.chunk(num_experts), self.deviation_I.chunk(num_experts), comoments)
        experts = [Statistics(*parts) for parts in zip(*columns, strict=True)]
        if self.parts is None:
            return experts
        parts = zip(*(part.of_experts(num_experts) for part in self.parts), strict=True)
        return [replace(expert, parts=pair) for expert, pair in zip(experts, parts, strict=True)]


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics at the inputs of the two output projections of a layer, of attention and MLP.

    inverse_power: E[1 / ‖h‖²] of the hidden states h that enter the layer (`residual.inverse_power`).
    routed_power: E[w²] of the router's weights w of each expert (`routing.routed_power`); empty without experts, and
    where they leave whole.
    """

    blocks: Pair[Statistics]
    inverse_power: float
    routed_power: tuple[float, ...] = ()


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, widest_float(device) if tensor.dtype == torch.float64 else tensor.dtype)


def batch_statistics(activation: Tensor) -> Statistics:
    """Return the statistics of a batch of activations (…, I), each position a token, without co-moments."""
    activation_TI = activation.flatten(end_dim=-2).float()
    num_tokens = activation_TI.shape[0]
    mean_I = activation_TI.mean(0)
    centred_TI = activation_TI - mean_I
    # the mean is rounded to float32: the mean that remains after centring corrects mean and deviation
    wide = widest_float(activation.device)
    error_I = centred_TI.mean(0).to(wide)
    deviation_I = centred_TI.square_().sum(0).to(wide) - num_tokens * error_I.square()
    return Statistics(num_tokens, mean_I.to(wide) + error_I, deviation_I.clamp_(min=0))


def expert_statistics(activations: Sequence[Tensor], num_tokens: int | None = None) -> Statistics:
    """Return the statistics of each expert's tokens (T, I), concatenated over the experts; zeros if it has no token.

    num_tokens: of all tokens, where those that an expert does not see count as zeros.
    """
    parts = [
        batch_statistics(activation_TI if len(activation_TI) else activation_TI.new_zeros(1, activation_TI.shape[1]))
        for activation_TI in activations
    ]
    num_tokens_I = torch.cat(
        [torch.full_like(part.mean_I, len(tokens_TI)) for part, tokens_TI in zip(parts, activations, strict=True)]
    )
    seen = Statistics(num_tokens_I, torch.cat([p.mean_I for p in parts]), torch.cat([p.deviation_I for p in parts]))
    if num_tokens is None:
        return seen
    zeros_I = torch.zeros_like(seen.mean_I)
    return merge(seen, Statistics(num_tokens - num_tokens_I, zeros_I, zeros_I))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Return the statistics of the union of two disjoint sets of tokens (Chan, Golub and LeVeque 1979); exact.

    Without co-moments, which `Covariance` merges in strips.
    """
    num_tokens = a.num_tokens + b.num_tokens
    step_I = b.mean_I - a.mean_I
    share = b.num_tokens / _at_least_one(num_tokens)
    deviation_I = a.deviation_I + b.deviation_I + step_I.square() * (a.num_tokens * share)
    return Statistics(num_tokens, a.mean_I + step_I * share, deviation_I)


def _at_least_one(count: int | Tensor) -> int | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
