"""Apply a plan: slice the units out for good, or (`mask`) zero them and keep the shapes.

Both fit the same compensation, so that a masked model computes what the sliced one computes.

Legend: O, I output and input channels of the output projection · K kept, P pruned channels · U units · R rows a unit.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from flap.allocation import LayerPlan, PruningPlan
from flap.calibration import LayerStatistics, Statistics
from flap.compression.compensation import Compensation
from flap.models import Block, ModelAdapter


class Compress(Protocol):
    """Either `prune_layer` or `mask_layer`."""

    def __call__(
        self,
        adapter: ModelAdapter,
        layer: int,
        plan: LayerPlan,
        compensation: Compensation,
        statistics: LayerStatistics | None,
    ) -> None: ...


def prune_layer(
    adapter: ModelAdapter,
    layer: int,
    plan: LayerPlan,
    compensation: Compensation,
    statistics: LayerStatistics | None,
) -> None:
    """Slice one layer in place to its kept units; a block that keeps all of them is not touched."""
    for block, kept_U, known in _decisions(adapter, layer, plan, statistics):
        weight_OK, bias_O = _fit(block, kept_U, compensation, known)
        _assign(block.output, weight_OK, bias_O)
        for linear, rows_UR in block.inputs:
            rows = rows_UR[kept_U].flatten().sort().values
            bias = None if linear.bias is None else linear.bias.detach()[rows]
            _assign(linear, linear.weight.detach()[rows], bias)
    adapter.refresh(layer)


def mask_layer(
    adapter: ModelAdapter,
    layer: int,
    plan: LayerPlan,
    compensation: Compensation,
    statistics: LayerStatistics | None,
) -> None:
    """Zero one layer's removed units in place: their rows and biases, and their columns of the output projection."""
    for block, kept_U, known in _decisions(adapter, layer, plan, statistics):
        weight_OK, bias_O = _fit(block, kept_U, compensation, known)
        weight_OI = torch.zeros_like(block.output.weight)
        weight_OI[:, _channels(block, kept_U)] = weight_OK
        _assign(block.output, weight_OI, bias_O)
        for linear, rows_UR in block.inputs:
            rows = rows_UR[_others(kept_U, block.num_units)].flatten()
            for parameter in linear.parameters():
                parameter.data[rows] = 0


def compress(
    adapter: ModelAdapter,
    plan: PruningPlan,
    compensation: Compensation,
    statistics: Sequence[LayerStatistics | None],
    compress_layer: Compress,
) -> None:
    """Apply a plan to every layer, in place."""
    for i, (layer, known) in enumerate(zip(plan.layers, statistics, strict=True)):
        compress_layer(adapter, i, layer, compensation, known)


def _decisions(
    adapter: ModelAdapter, layer: int, plan: LayerPlan, statistics: LayerStatistics | None
) -> list[tuple[Block, Tensor, Statistics | None]]:
    """The blocks that lose something, with their kept units and statistics."""
    attention, mlp = adapter.blocks(layer)
    pairs = [
        (attention, torch.tensor(plan.kv_heads), statistics.attention if statistics else None),
        (mlp, torch.tensor(plan.neurons), statistics.mlp if statistics else None),
    ]
    return [(block, kept_U, known) for block, kept_U, known in pairs if len(kept_U) < block.num_units]


@torch.no_grad()
def _fit(
    block: Block, kept_U: Tensor, compensation: Compensation, statistics: Statistics | None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the output projection once the other units are gone, in its own dtype."""
    output, device = block.output, block.output.weight.device
    kept_K = _channels(block, kept_U).to(device)
    pruned_P = _channels(block, _others(kept_U, block.num_units)).to(device)
    weight_OK, extra_O = compensation.fit(output.weight.float(), statistics, kept_K, pruned_P)
    bias_O: Tensor | None = output.bias
    if extra_O is not None:
        bias_O = extra_O if bias_O is None else bias_O.float() + extra_O
    dtype = output.weight.dtype
    return weight_OK.to(dtype), None if bias_O is None else bias_O.to(dtype)


def _channels(block: Block, units_U: Tensor) -> Tensor:
    return block.columns_UC[units_U].flatten().sort().values


def _others(kept_U: Tensor, num_units: int) -> Tensor:
    mask_U = torch.ones(num_units, dtype=torch.bool)
    mask_U[kept_U] = False
    return mask_U.nonzero().flatten()


def _assign(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a Linear new tensors and the widths that go with them."""
    trainable = linear.weight.requires_grad
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=trainable)
    linear.register_parameter(
        "bias", None if bias is None else nn.Parameter(bias.contiguous(), requires_grad=trainable)
    )
    linear.out_features, linear.in_features = weight.shape
