"""The channel statistics: of a batch of activations, merged exactly, and in a file, which all runs of a grid share.

Legend: I input channels of an output projection · T tokens.
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
from flap.storage import Kind, ranks

CHANNELS = (
    "num_tokens",
    "mean_I",
    "deviation_I",
)  # the stored fields of Statistics, of all members of a block


@dataclass(frozen=True)
class Statistics:
    """The statistics of the input channels of one output projection over a set of tokens; zeros if there is none."""

    num_tokens: int
    mean_I: Tensor  # in float64
    deviation_I: Tensor  # the sum of squared deviations from the mean, in float64
    comoments: Symmetric | None = (
        None  # the sums of products of the deviations of two channels, for covariances
    )
    # the statistics of the fitting tokens and of the held-out tokens, each with its co-moments;
    # None if they were collected together
    parts: "tuple[Statistics, Statistics] | None" = None

    @property
    def var_I(self) -> Tensor:
        """The sample variance, divisor T - 1, in float32; 0 for a single token."""
        return (self.deviation_I / max(self.num_tokens - 1, 1)).float()

    @property
    def msq_I(self) -> Tensor:
        """The mean square, in float32."""
        return (self.deviation_I / max(self.num_tokens, 1) + self.mean_I.square()).float()

    def to(self, device: torch.device) -> "Statistics":
        """Return the statistics on another device, such as the device of the weight."""
        mean_I, deviation_I = (
            one.to(device, widest_float(device)) for one in (self.mean_I, self.deviation_I)
        )
        parts = self.parts and (self.parts[0].to(device), self.parts[1].to(device))
        comoments = self.comoments and self.comoments.to(device)
        return replace(
            self, mean_I=mean_I, deviation_I=deviation_I, comoments=comoments, parts=parts
        )


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of the members of a layer's attention and of its MLP, at the inputs of output projections."""

    blocks: Pair[tuple[Statistics, ...]]
    inverse_power: (
        float  # E[1 / ‖h‖²] of the hidden states h that enter the layer (`recorder.inverse_power`)
    )
    routed_power: tuple[
        float, ...
    ] = ()  # E[w²] of the router's weights w of each member (`recorder.routed_power`)
    # where units are whole experts: each one's outputs without the router's weights, and the numbers of `OfToken`, over
    # the tokens that are sent to it
    routed: tuple[Statistics, ...] = ()


def batch_statistics(activation: Tensor, num_tokens: int | None = None) -> Statistics:
    """Return the statistics of a batch of activations (…, I), each position a token, without co-moments.

    num_tokens: of all tokens, where those that are not in the batch count as zeros.
    """
    activation_TI = activation.flatten(end_dim=-2).float()
    wide = widest_float(activation.device)
    zeros_I = torch.zeros(activation.shape[-1], dtype=wide, device=activation.device)
    seen = Statistics(len(activation_TI), zeros_I, zeros_I)
    if seen.num_tokens:
        mean_I = activation_TI.mean(0)
        centred_TI = activation_TI - mean_I
        # the mean is rounded to float32: the mean that remains after centring corrects mean and deviation
        error_I = centred_TI.mean(0).to(wide)
        deviation_I = centred_TI.square_().sum(0).to(wide) - seen.num_tokens * error_I.square()
        seen = Statistics(seen.num_tokens, mean_I.to(wide) + error_I, deviation_I.clamp_(min=0))
    return (
        seen
        if num_tokens is None
        else merge(seen, Statistics(num_tokens - seen.num_tokens, zeros_I, zeros_I))
    )


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Return the statistics of the union of two disjoint sets of tokens (Chan, Golub and LeVeque 1979); exact.

    Without co-moments, which `Covariance` merges in strips.
    """
    num_tokens = a.num_tokens + b.num_tokens
    step_I = b.mean_I - a.mean_I
    share = b.num_tokens / max(num_tokens, 1)
    deviation_I = a.deviation_I + b.deviation_I + step_I.square() * (a.num_tokens * share)
    return Statistics(num_tokens, a.mean_I + step_I * share, deviation_I)


def merged_over_ranks(own: Sequence[Statistics], device: torch.device) -> list[Statistics]:
    """Return the statistics of the tokens of all processes, of each member of a block.

    own: those of the tokens of this process; empty: it has none. device: of what is returned then; else that of `own`,
    as weights that are offloaded have none.
    """
    if ranks.size() == 1:
        return list(own)
    device = own[0].mean_I.device if own else device
    cpu = torch.device("cpu")
    plain = [
        (replace(one, comoments=None).to(cpu), one.comoments and one.comoments.size) for one in own
    ]
    members = list(zip(*filter(None, ranks.gather(plain)), strict=True))
    sums = [one.comoments for one in own] or [
        size and Symmetric.zeros(size, device) for (_, size), *_ in members
    ]
    parts = [[part.to(device) for part, _ in of_ranks] for of_ranks in members]
    return list(map(_merged_parts, parts, sums))


def _merged_parts(parts: Sequence[Statistics], comoments: Symmetric | None) -> Statistics:
    """Return the statistics of all parts. comoments: of that of this process, to which the others' are added in place.

    C = Σ (C_r + T_r · (mean_r - mean) (mean_r - mean)ᵀ) over the processes r, with their tokens T_r (Chan, Golub and
    LeVeque 1979).
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
        for block, members in {**layer.blocks._asdict(), "routed": layer.routed}.items():
            for name in CHANNELS if members else ():
                values = [torch.as_tensor(getattr(member, name)) for member in members]
                tensors[f"{i}.{block}.{name}"] = torch.stack(values)
    save_file(tensors, path)


def read_statistics(path: Path) -> list[LayerStatistics]:
    """Read the statistics of all layers from a file."""
    tensors = load_file(path)
    num_layers = 1 + max(int(name.split(".")[0]) for name in tensors)
    return [_layer(tensors, i) for i in range(num_layers)]


STATISTICS: Kind[list[LayerStatistics]] = Kind("statistics", write_statistics, read_statistics)


def _layer(tensors: dict[str, Tensor], i: int) -> LayerStatistics:
    *blocks, routed = (_members(tensors, f"{i}.{block}.") for block in (*Pair._fields, "routed"))
    power = tuple(tensors[f"{i}.routed_power"].tolist())
    return LayerStatistics(Pair(*blocks), tensors[f"{i}.inverse_power"].item(), power, routed)


def _members(tensors: dict[str, Tensor], prefix: str) -> tuple[Statistics, ...]:
    if prefix + CHANNELS[0] not in tensors:
        return ()
    counts_M, mean_MI, deviation_MI = (tensors[prefix + name] for name in CHANNELS)
    return tuple(map(Statistics, counts_M.tolist(), mean_MI, deviation_MI))
