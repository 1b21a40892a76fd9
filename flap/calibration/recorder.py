"""Recorders of the statistics at a layer, by forward hooks inside a `with` block."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from flap.calibration.comoments import Comoments
from flap.calibration.residual import ResidualRecorder, inverse_power
from flap.calibration.routing import RoutingRecorder, routed_power
from flap.calibration.statistics import LayerStatistics, Statistics, batch_statistics, expert_statistics, merge
from flap.calibration.symmetric import num_elements
from flap.models import Block, ExpertsBlock, ModelAdapter, Pair


class BlockRecorder:
    """A forward pre-hook that merges the statistics of the inputs of an output projection."""

    def __init__(self, block: Block, covariance: bool) -> None:
        self.block = block
        self.comoments = Comoments(about_zero=block.whole_experts) if covariance else None
        self.statistics: Statistics | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        activations = self.block.activations(args)
        if self.block.is_mixture:
            batch = expert_statistics(activations, self.block.num_tokens(args))
        else:
            batch = batch_statistics(activations[0])
        self.statistics = batch if self.statistics is None else merge(self.statistics, batch)
        if self.comoments is not None:
            self.comoments.add(activations)

    def finish(self) -> Statistics:
        """Return the statistics of all recorded tokens.

        Raises:
            ValueError: they are not finite; names the block.
        """
        statistics = self.statistics
        assert statistics is not None, f"{self.block.name} saw no token"
        if self.comoments is not None:
            comoments = self.comoments.finish(statistics.num_tokens, statistics.mean_I)
            self.statistics = statistics = replace(statistics, comoments=comoments)
            self.comoments = None
        # |co-moment| of two channels is at most the larger of their squares: if the diagonal is finite, all are
        squares = statistics.deviation_I, *(one.diagonal() for one in statistics.comoments)
        if not all(torch.isfinite(part).all() for part in squares):
            raise ValueError(
                f"calibration: activations of {self.block.name} are not finite; try model.dtype=float32 or bfloat16, "
                "or check the weights"
            )
        return statistics


class LayerRecorder:
    """Records the hidden states that enter a layer, the inputs of its two output projections and its router's weights.

    It does so inside a `with` block.
    """

    def __init__(self, adapter: ModelAdapter, layer: int, covariance: bool = False) -> None:
        self.layer = adapter.layers[layer]
        blocks = adapter.blocks(layer)
        self.blocks = Pair(*(BlockRecorder(block, covariance) for block in blocks))
        self.residual = ResidualRecorder()
        # the channels of whole experts have the router's weight in them
        mixtures = [block for block in blocks if isinstance(block, ExpertsBlock)]
        self.routing = [RoutingRecorder(block) for block in mixtures if not block.whole_experts]
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "LayerRecorder":
        self._hooks = [
            self.layer.register_forward_pre_hook(self.residual),
            *(recorder.block.watched.register_forward_pre_hook(recorder) for recorder in self.blocks),
            *(one.block.watched.register_forward_pre_hook(one) for one in self.routing),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def finish(self) -> LayerStatistics:
        """Return the statistics of the layer.

        Raises:
            ValueError: they are not finite; names the block.
        """
        blocks = Pair(*(recorder.finish() for recorder in self.blocks))
        return LayerStatistics(blocks, inverse_power([self.residual]), routed_power(self.routing))


def joined(fitting: LayerRecorder, held_out: LayerRecorder) -> LayerStatistics:
    """Return the statistics of a layer from the recorders of its fitting and of its held-out windows.

    The co-moments of the two stay separate, in `Statistics.parts`.
    """
    pairs = zip(fitting.blocks, held_out.blocks, strict=True)
    blocks = Pair(*(_join([recorder.finish() for recorder in pair]) for pair in pairs))
    power = inverse_power([fitting.residual, held_out.residual])
    return LayerStatistics(blocks, power, routed_power([*fitting.routing, *held_out.routing]))


def _join(parts: Sequence[Statistics]) -> Statistics:
    all_tokens = reduce(merge, (replace(part, comoments=()) for part in parts))
    return replace(all_tokens, parts=(parts[0], parts[1]))


def recorded_bytes(covariance: bool) -> int:
    """Return the bytes that a recorder holds of an element of a batch: float32, centred, and again for co-moments."""
    return 12 if covariance else 8


def recorded_operations(channels: int, covariance: bool) -> float:
    """Return the operations that recording a token of one expert takes: its part of the co-moments."""
    return 2 * num_elements(channels) if covariance else 0.0
