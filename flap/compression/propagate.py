"""calibration.propagate=pruned: a second pass in which each layer corrects the error of those before it.

Legend: I input, O output channels of an output projection · K inputs that a correction may read · U units.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from flap.allocation import LayerPlan, PruningPlan
from flap.calibration import LayerStatistics
from flap.compression.apply import CompressLayer, assign, channels
from flap.compression.compatible import check_plan, check_statistics
from flap.compression.compensation import Compensation, Repair
from flap.compression.correction import Addition, Correction, correct
from flap.compression.streams import Streams
from flap.models import Block, ModelAdapter
from flap.progress import progress


@torch.no_grad()
def propagate(
    adapter: ModelAdapter,
    plan: PruningPlan,
    compensation: Compensation,
    statistics: Iterable[LayerStatistics | None],
    compress_layer: CompressLayer,
    tokens_NT: Tensor,
    batch_size: int,
) -> tuple[dict[str, Repair], dict[str, Correction]]:
    """Apply a plan as `compress` does, and correct each block that changes for what the layers before it put out now.

    Returns what the fits report and what the corrections do, by the block's name.

    Raises:
        ValueError: activations are not finite; or plan or statistics are another model's.
    """
    repairs: dict[str, Repair] = {}
    corrections: dict[str, Correction] = {}
    check_plan(adapter, plan)
    streams, known = Streams(adapter, tokens_NT, batch_size), iter(statistics)
    for i, layer in enumerate(progress(adapter.layers, "correct, layer by layer")):
        of_layer = next(known, None)
        check_statistics(adapter, i, of_layer, streams)
        changing = _changing(adapter, i, plan.layers[i])
        if changing:
            # copied together, so that the projections are those of the copied layer
            dense, outputs = copy.deepcopy((layer, [block.output for block, _ in changing]))
            streams.part()
            repairs |= compress_layer(adapter, i, plan.layers[i], compensation, of_layer)
            del of_layer  # with its covariances, before others are collected
            corrections |= _correct(streams, i, layer, changing, streams.targets(i, dense, outputs), compensation)
        elif streams.are_apart:
            streams.advance(i, layer, streams.dense)
        streams.advance(i, layer, streams.pruned)
    return repairs, corrections


def _changing(adapter: ModelAdapter, i: int, plan: LayerPlan) -> list[tuple[Block, Tensor]]:
    """The blocks of a layer that lose units, with the input channels that they keep; attention first."""
    kept = [torch.tensor(units) for units in (plan.kv_heads, plan.neurons)]
    return [
        (block, channels(block, kept_U))
        for block, kept_U in zip(adapter.blocks(i), kept, strict=True)
        if len(kept_U) < block.num_units
    ]


def _correct(
    streams: Streams,
    i: int,
    layer: nn.Module,
    changing: list[tuple[Block, Tensor]],
    targets: list[Iterable[Tensor]],
    compensation: Compensation,
) -> dict[str, Correction]:
    """Correct a compressed layer. Its MLP comes after its attention: it reads what that has become."""
    corrections: dict[str, Correction] = {}
    for (block, kept_I), of_block in zip(changing, targets, strict=True):
        sliced = block.output.in_features == len(kept_I)
        inputs_K = torch.arange(len(kept_I)) if sliced else kept_I
        if not compensation.correction_ridges:
            inputs_K = inputs_K[:0]  # a constant reads nothing
        parts = streams.residuals(i, layer, block, inputs_K, of_block)
        added = correct(*parts, len(inputs_K), compensation.correction_ridges)
        if added.correction.held_out_error < added.correction.held_out_error_before:
            _add(block.output, inputs_K.to(added.slope_OK.device), added)
        corrections[block.name] = added.correction
    return corrections


def _add(output: Any, inputs_K: Tensor, added: Addition) -> None:
    """Change the projection; in float32, and back once."""
    dtype = output.weight.dtype
    weight_OI = output.weight.float().index_add(1, inputs_K, added.slope_OK)
    bias_O = added.shift_O if output.bias is None else output.bias.float() + added.shift_O
    assign(output, weight_OI.to(dtype), bias_O.to(dtype))
