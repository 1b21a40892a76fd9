"""Collect statistics: hooks in a `with` block around one forward pass, or layer by layer behind pruned layers.

Legend: N windows · T tokens a window · D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flap.calibration.statistics import Moments, Statistics, merge, moments, statistics
from flap.models import Block, ModelAdapter
from flap.models.layerwise import calls_by_size, enter
from flap.progress import progress


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics at the inputs of a layer's attention output and MLP output projections."""

    attention: Statistics
    mlp: Statistics


class _Recorder:
    """Forward pre-hook of an output projection: merges the moments of what flows in."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.moments: Moments | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        batch = moments(args[0])
        self.moments = batch if self.moments is None else merge(self.moments, batch)

    def finish(self) -> Statistics:
        assert self.moments is not None, f"{self.block.name} saw no token"
        if not torch.isfinite(self.moments.deviation_I).all():
            raise ValueError(
                f"calibration: activations of {self.block.name} are not finite; try model.dtype=float32 or bfloat16, "
                "or check the weights"
            )
        return statistics(self.moments)


@contextmanager
def recording(adapter: ModelAdapter, layers: range) -> Iterator[list[tuple[_Recorder, _Recorder]]]:
    """Record at the output projections of these layers for as long as the block lasts."""
    recorders = [(_Recorder(adapter.attention(i)), _Recorder(adapter.mlp(i))) for i in layers]
    hooks = [r.block.output.register_forward_pre_hook(r) for pair in recorders for r in pair]
    try:
        yield recorders
    finally:
        for hook in hooks:
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
    return [LayerStatistics(attention.finish(), mlp.finish()) for attention, mlp in recorders]


@torch.no_grad()
def collect_layerwise(
    adapter: ModelAdapter, tokens_NT: Tensor, batch_size: int
) -> Iterator[tuple[int, LayerStatistics]]:
    """Yield one layer's statistics at a time; what the caller then does to the layer is what the next layers see.

    Hidden states of all windows (N · T · D) wait in one buffer on the host; each layer runs twice over it.
    """
    batches_NT, device = tokens_NT.split(batch_size), adapter.decoder.device
    calls = calls_by_size(adapter, batches_NT, device)
    hidden = [enter(adapter, batch_NT.to(device))[0].cpu() for batch_NT in batches_NT]
    for i, layer in enumerate(progress(adapter.layers, "calibrate, layer by layer")):
        with recording(adapter, range(i, i + 1)) as [(attention, mlp)]:
            for batch in hidden:
                calls[len(batch)][i](layer, batch)
        yield i, LayerStatistics(attention.finish(), mlp.finish())
        for batch in hidden:
            batch.copy_(calls[len(batch)][i](layer, batch))
