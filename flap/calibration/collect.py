"""Collect statistics: hooks in a `with` block around one forward pass, or layer by layer behind pruned layers.

Legend: N windows · T tokens a window · D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from flap.calibration.residual import ResidualRecorder, inverse_power
from flap.calibration.statistics import Moments, Statistics, merge, moments, moments_of_experts, statistics
from flap.models import Block, ModelAdapter
from flap.models.layerwise import Call, calls_by_size, enter
from flap.progress import progress

# Where covariances are asked for, every fifth window is held out to choose between fits.
HELD_OUT = 5


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics at the inputs of a layer's attention output and MLP output projections.

    inverse_power: E[1 / ‖h‖²] of the hidden states h that enter the layer (`residual.inverse_power`).
    """

    attention: Statistics
    mlp: Statistics
    inverse_power: float


class _Recorder:
    """Forward pre-hook of an output projection: merges the moments of what flows in."""

    def __init__(self, block: Block, covariance: bool) -> None:
        self.block = block
        self.covariance = covariance
        self.moments: Moments | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        flowing_in = self.block.activations(args)
        batch = moments(flowing_in[0], self.covariance) if len(flowing_in) == 1 else moments_of_experts(flowing_in)
        self.moments = batch if self.moments is None else merge(self.moments, batch)

    def seen(self) -> Moments:
        assert self.moments is not None, f"{self.block.name} saw no token"
        return finite(self.moments, self.block.name)


class LayerRecorder:
    """What is recorded of one layer."""

    def __init__(self, adapter: ModelAdapter, layer: int, covariance: bool) -> None:
        self.attention, self.mlp = (_Recorder(block, covariance) for block in adapter.blocks(layer))
        self.residual = ResidualRecorder()
        self.hooks = [
            adapter.layers[layer].register_forward_pre_hook(self.residual),
            self.attention.block.watched.register_forward_pre_hook(self.attention),
            self.mlp.block.watched.register_forward_pre_hook(self.mlp),
        ]

    def finish(self) -> LayerStatistics:
        attention, mlp = statistics(self.attention.seen()), statistics(self.mlp.seen())
        return LayerStatistics(attention, mlp, inverse_power([self.residual]))


def finite(known: Moments, block: str) -> Moments:
    """The same. Raises: ValueError: they are not finite; names the block."""
    # no product of two channels is larger than both their squares: of I² co-moments the diagonal speaks for all
    squares = (known.deviation_I, None if known.comoment_II is None else known.comoment_II.diagonal())
    if not all(part is None or torch.isfinite(part).all() for part in squares):
        raise ValueError(
            f"calibration: activations of {block} are not finite; try model.dtype=float32 or bfloat16, or check the "
            "weights"
        )
    return known


@contextmanager
def recording(adapter: ModelAdapter, layers: range, covariance: bool = False) -> Iterator[list[LayerRecorder]]:
    """Record at the entries and the output projections of these layers for as long as the block lasts."""
    recorders = [LayerRecorder(adapter, i, covariance) for i in layers]
    try:
        yield recorders
    finally:
        for hook in (hook for one in recorders for hook in one.hooks):
            hook.remove()


@torch.no_grad()
def collect(adapter: ModelAdapter, tokens_NT: Tensor, batch_size: int) -> list[LayerStatistics]:
    """Statistics of every layer on dense inputs: one forward pass, one batch in flight.

    Raises:
        ValueError: activations are not finite; names the first such layer.
    """
    device = adapter.decoder.device
    with recording(adapter, range(len(adapter.layers))) as recorders:
        for batch_NT in progress(tokens_NT.split(batch_size), "calibrate", Tensor.numel):
            adapter.decoder(input_ids=batch_NT.to(device), use_cache=False)
    return [one.finish() for one in recorders]


def collect_layerwise(
    adapter: ModelAdapter, tokens_NT: Tensor, batch_size: int, covariance: bool = False, layers_change: bool = True
) -> Iterator[tuple[int, LayerStatistics]]:
    """Yield one layer's statistics at a time; what the caller then does to the layer is what the next layers see.

    Hidden states of all windows (N · T · D) wait in one buffer on the host; each layer runs twice over it, or once
    where no layer changes. covariance: with co-moments, those of every fifth window apart.
    """
    hidden, calls = enter_windows(adapter, tokens_NT, batch_size, covariance)
    for i, layer in enumerate(progress(adapter.layers, "calibrate, layer by layer")):
        call = {size: of_layers[i] for size, of_layers in calls.items()}
        yield i, _observe(adapter, i, hidden, call, covariance, advance=not layers_change)
        for batch in chain.from_iterable(hidden) if layers_change else ():
            batch.copy_(call[len(batch)](layer, batch))


def split_windows(tokens_NT: Tensor) -> tuple[Tensor, Tensor]:
    """The windows to fit on, and those held out to choose between fits."""
    held_out_N = torch.arange(len(tokens_NT)) % HELD_OUT == 0
    return tokens_NT[~held_out_N], tokens_NT[held_out_N]


def enter_windows(
    adapter: ModelAdapter, tokens_NT: Tensor, batch_size: int, apart: bool
) -> tuple[list[list[Tensor]], dict[int, list[Call]]]:
    """In front of the first layer: hidden states on the host, in batches, and how each layer is called for a size.

    apart: the windows to fit on, then those held out; else all are one part.
    """
    device = adapter.decoder.device
    parts = [part_NT.split(batch_size) for part_NT in (split_windows(tokens_NT) if apart else (tokens_NT,))]
    calls = calls_by_size(adapter, list(chain.from_iterable(parts)), device)
    return [[enter(adapter, batch_NT.to(device))[0].cpu() for batch_NT in part] for part in parts], calls


@torch.no_grad()  # not around the generator: there it would hold what was yielded, covariances and all
def _observe(
    adapter: ModelAdapter, i: int, hidden: list[list[Tensor]], call: dict[int, Call], covariance: bool, advance: bool
) -> LayerStatistics:
    """Run a layer over all parts and record; advance: its outputs take the place of its inputs."""
    recorders: list[LayerRecorder] = []
    for batches in hidden:
        with recording(adapter, range(i, i + 1), covariance) as [recorder]:
            for batch in batches:
                output = call[len(batch)](adapter.layers[i], batch)
                if advance:
                    batch.copy_(output)
        recorders.append(recorder)
    attention, mlp = ([one.attention.seen() for one in recorders], [one.mlp.seen() for one in recorders])
    return LayerStatistics(_join(attention), _join(mlp), inverse_power([one.residual for one in recorders]))


def _join(parts: Sequence[Moments]) -> Statistics:
    whole = reduce(merge, (replace(part, comoment_II=None) for part in parts))
    return statistics(whole, (parts[0], parts[1]) if parts[0].comoment_II is not None else None)
