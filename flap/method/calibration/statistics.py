"""Compute statistics of channels for a batch, merge them over batches, and store them in a file.

A block is the attention or the MLP of a layer. In a mixture of experts, the members of the MLP are
its experts. Every fifth calibration window is held out. The held-out windows are used to test
compensations, which change output projections to make up for removed units (heads, neurons or
experts). With structure=search, these windows are also used to measure the effect of pruning a
single block. The tokens of held-out windows are called held-out tokens. The tokens of all other
windows are called fitting tokens. The co-moment of two channels is the sum, over tokens, of the
product of their deviations from their means.

Legend: I: input channels of an output projection · T: tokens · E[…]: mean over tokens · M: members
of a block · U: units of a member · S: rows of a strip of a `Symmetric` matrix · J: columns of a
strip.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flap.method.calibration.symmetric import Symmetric
from flap.models import Pair
from flap.models.devices import widest_float
from flap.runtime import ranks
from flap.storage import Kind

# the fields of `Statistics` that are always stored
CHANNELS = ("num_tokens", "mean_I", "deviation_I")
EFFECT = "effect_U"  # the field of `Statistics` that is stored if gradients were computed


@dataclass(frozen=True)
class Statistics:
    """Statistics of the input channels of one output projection over a set of tokens.

    All values are zero if the set has no tokens.
    """

    num_tokens: int
    mean_I: Tensor  # mean of each channel, in float64, or in float32 on mps
    # for each channel, the sum of squared deviations from the mean, in the dtype of the mean
    deviation_I: Tensor
    # for each pair of channels, the sum over tokens of the product of their deviations from the
    # means; None if no covariances are needed
    comoments: Symmetric | None = None
    # statistics of the fitting tokens and of the held-out tokens, each with co-moments; None if
    # the statistics of all tokens were collected together
    parts: "tuple[Statistics, Statistics] | None" = None
    # first-order effect that removing each unit has on the loss (`gradients.first_order_effects`);
    # None unless the metric needs gradients
    effect_U: Tensor | None = None

    @property
    def var_I(self) -> Tensor:
        """The sample variance of each channel, with divisor T - 1, in float32; 0 if T is 1."""
        return (self.deviation_I / max(self.num_tokens - 1, 1)).float()

    @property
    def msq_I(self) -> Tensor:
        """The mean square of each channel, in float32."""
        return (self.deviation_I / max(self.num_tokens, 1) + self.mean_I.square()).float()

    def to(self, device: torch.device) -> "Statistics":
        """Return the statistics on another device, such as the device of a weight."""
        wide = widest_float(device)
        return replace(
            self,
            mean_I=self.mean_I.to(device, wide),
            deviation_I=self.deviation_I.to(device, wide),
            comoments=self.comoments and self.comoments.to(device),
            parts=self.parts and (self.parts[0].to(device), self.parts[1].to(device)),
            effect_U=None if self.effect_U is None else self.effect_U.to(device, wide),
        )


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of the input of one layer, and of the inputs of its output projections."""

    blocks: Pair[tuple[Statistics, ...]]  # for attention and MLP, statistics of each member
    inverse_power: float  # E[1 / ‖h‖²] of the layer's input h (`recorder.inverse_power`)
    # for each member of the MLP, E[w²], where w is the weight by which the router multiplies the
    # member's output; empty if there is no router (`recorder.routed_power`)
    routed_power: tuple[float, ...] = ()
    # If units are whole experts, the statistics of each expert over the tokens that are routed to
    # the expert; otherwise empty. The first channels are the channels of the expert's output before
    # it is multiplied by the router's weight. The last two channels are the norms of this output
    # and of the multiplied output (`OfToken` in flap/models/whole_experts.py).
    routed: tuple[Statistics, ...] = ()


def batch_statistics(activation: Tensor, num_tokens: int | None = None) -> Statistics:
    """Return the statistics of a batch of activations (…, I), without co-moments.

    Each vector of I activations belongs to one token.

    num_tokens: the number of all tokens, if `activation` lacks the tokens whose activations are all
        zero; None if `activation` has all tokens.
    """
    activation_TI = activation.flatten(end_dim=-2).float()
    wide = widest_float(activation.device)
    zeros_I = torch.zeros(activation.shape[-1], dtype=wide, device=activation.device)
    seen = Statistics(len(activation_TI), zeros_I, zeros_I)
    if seen.num_tokens:
        mean_I = activation_TI.mean(0)
        centred_TI = activation_TI - mean_I
        # `mean_I` was rounded to float32. The mean of the centred values is this rounding error,
        # and is used to correct the mean and the deviation.
        error_I = centred_TI.mean(0).to(wide)
        deviation_I = centred_TI.square_().sum(0).to(wide) - seen.num_tokens * error_I.square()
        seen = Statistics(seen.num_tokens, mean_I.to(wide) + error_I, deviation_I.clamp_(min=0))
    if num_tokens is None:
        return seen
    return merge(seen, Statistics(num_tokens - seen.num_tokens, zeros_I, zeros_I))


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Return the statistics of the union of two disjoint sets of tokens.

    The result is exact except for rounding (Chan, Golub and LeVeque 1979). It has no co-moments,
    because the class `Covariance` merges the co-moments later, strip by strip.
    """
    num_tokens = a.num_tokens + b.num_tokens
    step_I = b.mean_I - a.mean_I
    share = b.num_tokens / max(num_tokens, 1)
    deviation_I = a.deviation_I + b.deviation_I + step_I.square() * (a.num_tokens * share)
    return Statistics(num_tokens, a.mean_I + step_I * share, deviation_I)


def merged_over_ranks(local: Sequence[Statistics], device: torch.device) -> list[Statistics]:
    """Merge the statistics of each member of a block over the tokens of all processes.

    local: the statistics of each member over the tokens of this process; empty if the process has
        no tokens.
    device: the device of the result if `local` is empty. Otherwise, the result is on the device of
        `local`.
    """
    if ranks.size() == 1:
        return list(local)
    device = local[0].mean_I.device if local else device
    cpu = torch.device("cpu")
    # for each member, its statistics without co-moments, and the number of rows of its co-moment
    # matrix (None if no co-moments were collected)
    sent = list[tuple[Statistics, int | None]]()
    for member in local:
        size = None if member.comoments is None else member.comoments.size
        sent.append((replace(member, comoments=None).to(cpu), size))

    merged = list[Statistics]()
    members = zip(*filter(None, ranks.gather(sent)), strict=True)
    for n, of_ranks in enumerate(members):
        if local:
            comoments = local[n].comoments
        else:
            _, size = of_ranks[0]
            comoments = None if size is None else Symmetric.zeros(size, device)
        parts = [statistics.to(device) for statistics, _ in of_ranks]
        merged.append(_merged_parts(parts, comoments))
    return merged


def _merged_parts(parts: Sequence[Statistics], comoments: Symmetric | None) -> Statistics:
    """Merge the statistics of one member of a block from all processes.

    The co-moments of the result are Σ (C_r + T_r · (mean_r - mean) (mean_r - mean)ᵀ), summed over
    the processes r (Chan, Golub and LeVeque 1979). C_r, T_r and mean_r are the co-moments, the
    number of tokens and the mean of process r, and mean is the mean over the tokens of all
    processes.

    comoments: the co-moments of this process, to which the co-moments of all other processes are
        added in place.
    """
    merged = reduce(merge, parts)
    if comoments is not None:
        for strip_SJ in comoments.strips:
            ranks.add_up(strip_SJ)
        for part in parts:
            shift_I = part.mean_I - merged.mean_I
            comoments.add_outer((shift_I * part.num_tokens).float(), shift_I.float(), alpha=1)
    return replace(merged, comoments=comoments)


def write_statistics(statistics: Sequence[LayerStatistics], path: Path) -> None:
    """Write the statistics of all layers to one safetensors file."""
    tensors: dict[str, Tensor] = {}
    for i, layer in enumerate(statistics):
        tensors[f"{i}.inverse_power"] = torch.tensor(layer.inverse_power)
        tensors[f"{i}.routed_power"] = torch.tensor(layer.routed_power)
        blocks = {**layer.blocks._asdict(), "routed": layer.routed}
        for block, members in blocks.items():
            if not members:
                continue
            for name in CHANNELS:
                values = [torch.as_tensor(getattr(member, name)) for member in members]
                tensors[f"{i}.{block}.{name}"] = torch.stack(values)
            effects = [member.effect_U for member in members if member.effect_U is not None]
            if effects:
                tensors[f"{i}.{block}.{EFFECT}"] = torch.stack(effects)
    save_file(tensors, path)


def read_statistics(path: Path) -> list[LayerStatistics]:
    """Read the statistics of all layers from a file that `write_statistics` has written."""
    tensors = load_file(path)
    num_layers = 1 + max(int(name.split(".")[0]) for name in tensors)
    return [_layer(tensors, i) for i in range(num_layers)]


STATISTICS: Kind[list[LayerStatistics]] = Kind("statistics", write_statistics, read_statistics)


def _layer(tensors: dict[str, Tensor], i: int) -> LayerStatistics:
    return LayerStatistics(
        blocks=Pair(*(_members(tensors, f"{i}.{block}.") for block in Pair._fields)),
        inverse_power=tensors[f"{i}.inverse_power"].item(),
        routed_power=tuple(tensors[f"{i}.routed_power"].tolist()),
        routed=_members(tensors, f"{i}.routed."),
    )


def _members(tensors: dict[str, Tensor], prefix: str) -> tuple[Statistics, ...]:
    if prefix + CHANNELS[0] not in tensors:
        return ()
    counts_M, mean_MI, deviation_MI = (tensors[prefix + name] for name in CHANNELS)
    members = tuple(map(Statistics, counts_M.tolist(), mean_MI, deviation_MI))
    effect_MU = tensors.get(prefix + EFFECT)
    return members if effect_MU is None else with_effects(members, effect_MU)


def with_effects(members: Sequence[Statistics], effect_MU: Tensor) -> tuple[Statistics, ...]:
    """Return copies of the members' statistics with the field `effect_U`.

    effect_MU: for each member, the first-order effect that removing each unit has on the loss.
    """
    pairs = zip(members, effect_MU, strict=True)
    return tuple(replace(member, effect_U=effect_U) for member, effect_U in pairs)
