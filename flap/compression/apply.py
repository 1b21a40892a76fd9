"""Applying a plan, layer by layer. Slicing and masking differ only in the last step, so their results agree.

Legend: O, I output and input channels of the output projection · K kept, P pruned channels · U units.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from flap.allocation import LayerPlan, PruningPlan
from flap.calibration import LayerStatistics, Statistics
from flap.compression.compensation import Compensation, Fit, FitReport
from flap.models import Block, ModelAdapter, Pair


@dataclass(frozen=True)
class Change:
    """The change of a block: its kept and pruned units, and the new output projection, in the model's dtype."""

    block: Block
    kept_U: Tensor
    pruned_U: Tensor
    weight_OK: Tensor
    bias_O: Tensor | None
    report: FitReport | None


class CompressLayer(Protocol):
    """A function that changes one layer, which must be present: `slice_layer` or `mask_layer`.

    A block that keeps all its units is not changed. Returns the fit reports by the name of the block.
    """

    def __call__(
        self,
        adapter: ModelAdapter,
        layer: int,
        plan: LayerPlan,
        compensation: Compensation,
        statistics: LayerStatistics | None,
    ) -> dict[str, FitReport]: ...


def compress(
    adapter: ModelAdapter,
    plan: PruningPlan,
    compensation: Compensation,
    statistics: Iterable[tuple[int, LayerStatistics | None]],
    compress_layer: CompressLayer,
) -> dict[str, FitReport]:
    """Apply a plan to every layer. Each layer must be present while `statistics` yields its statistics.

    Returns the fit reports by the name of the block.
    """
    reports: dict[str, FitReport] = {}
    for i, observed in statistics:
        reports |= compress_layer(adapter, i, plan.layers[i], compensation, observed)
        del observed  # with its covariances, before the next layer's are collected
    return reports


def compress_layer_by(write: Callable[[Change], None]) -> CompressLayer:
    """Return a function that changes a layer. write: how the change of a block is written into the model."""

    def compress_layer(
        adapter: ModelAdapter,
        layer: int,
        plan: LayerPlan,
        compensation: Compensation,
        statistics: LayerStatistics | None,
    ) -> dict[str, FitReport]:
        reports: dict[str, FitReport] = {}
        by_block: Pair[Statistics] | tuple[None, None] = statistics.blocks if statistics else (None, None)
        for block, kept, observed in zip(adapter.blocks(layer), plan, by_block, strict=True):
            if len(kept) < block.num_units:
                change = _change(block, torch.tensor(kept), compensation, observed)
                write(change)
                reports |= {} if change.report is None else {block.name: change.report}
        adapter.refresh(layer)
        return reports

    return compress_layer


@torch.no_grad()
def _change(block: Block, kept_U: Tensor, compensation: Compensation, statistics: Statistics | None) -> Change:
    """Return the change of a block that keeps these units."""
    pruned_U = torch.tensor(sorted(set(range(block.num_units)) - set(kept_U.tolist())))
    output, device = block.output, block.output.weight.device
    observed = statistics and statistics.to(device)
    kept, pruned = channels(block, kept_U).to(device), channels(block, pruned_U).to(device)
    fit_block = (
        partial(_fit_each_expert, compensation, block.num_experts) if block.num_experts > 1 else compensation.fit
    )
    fit = fit_block(output.weight.float(), observed, kept, pruned)
    bias_O: Tensor | None = output.bias
    if fit.bias_O is not None:
        bias_O = fit.bias_O if bias_O is None else bias_O.float() + fit.bias_O
    dtype = output.weight.dtype
    bias_O = None if bias_O is None else bias_O.to(dtype)
    return Change(block, kept_U, pruned_U, fit.weight_OK.to(dtype), bias_O, fit.report)


def _fit_each_expert(
    compensation: Compensation,
    experts: int,
    weight_OI: Tensor,
    statistics: Statistics | None,
    kept_K: Tensor,
    pruned_P: Tensor,
) -> Fit:
    """Return the fits of all experts, each on its own channels and tokens, concatenated; the bias is bias_EO."""
    first_E = torch.arange(experts, device=kept_K.device)[:, None] * (weight_OI.shape[1] // experts)
    fits = [
        compensation.fit(*arguments)
        for arguments in zip(
            weight_OI.chunk(experts, dim=1),
            statistics.of_experts(experts) if statistics else [None] * experts,
            kept_K.reshape(experts, -1) - first_E,
            pruned_P.reshape(experts, -1) - first_E,
            strict=True,
        )
    ]
    biases = [fit.bias_O for fit in fits if fit.bias_O is not None]
    return Fit(torch.cat([fit.weight_OK for fit in fits], dim=1), torch.stack(biases) if biases else None)


def channels(block: Block, units_U: Tensor) -> Tensor:
    """Return the input channels of the output projection that belong to these units, ascending."""
    return block.columns_UC[units_U].flatten().sort().values


def assign(linear: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Replace the tensors of a Linear, or of an object like one (experts.py), and update its widths."""
    if not isinstance(linear, nn.Linear):
        linear.assign(weight, bias)
        return
    trainable = linear.weight.requires_grad
    set_weight(linear, weight)
    new_bias = None if bias is None else nn.Parameter(bias.contiguous(), requires_grad=trainable)
    linear.register_parameter("bias", new_bias)
    linear.out_features, linear.in_features = weight.shape


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Replace the weight of a module; the new one is trainable if the old one was."""
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=cast(Tensor, module.weight).requires_grad)
