"""Apply a plan, layer by layer. Slicing and masking share all but the last step, so that they compute the same.

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
from flap.compression.compensation import Compensation, Fit, Repair
from flap.models import Block, ModelAdapter, at_hand


@dataclass(frozen=True)
class Change:
    """What becomes of a block that loses units: its output projection's new weight and bias, in the model's dtype."""

    block: Block
    kept_U: Tensor
    pruned_U: Tensor
    weight_OK: Tensor
    bias_O: Tensor | None
    repair: Repair | None


class CompressLayer(Protocol):
    """`prune_layer` or `mask_layer`: change one layer in place; a block that keeps all units is not touched.

    Returns what linear fits report, by the block's name.
    """

    def __call__(
        self,
        adapter: ModelAdapter,
        layer: int,
        plan: LayerPlan,
        compensation: Compensation,
        statistics: LayerStatistics | None,
    ) -> dict[str, Repair]: ...


def compress(
    adapter: ModelAdapter,
    plan: PruningPlan,
    compensation: Compensation,
    statistics: Iterable[LayerStatistics | None],
    compress_layer: CompressLayer,
) -> dict[str, Repair]:
    """Apply a plan to every layer, in place; returns what linear fits report, by the block's name."""
    repairs: dict[str, Repair] = {}
    known = iter(statistics)  # a zip would hold a layer's covariances while the next one's are read
    for i, layer in enumerate(plan.layers):
        repairs |= compress_layer(adapter, i, layer, compensation, next(known))
    return repairs


def compress_layer_by(write: Callable[[Change], None]) -> CompressLayer:
    """The function that changes a layer by writing each of its changes into the model."""

    def compress_layer(
        adapter: ModelAdapter,
        layer: int,
        plan: LayerPlan,
        compensation: Compensation,
        statistics: LayerStatistics | None,
    ) -> dict[str, Repair]:
        repairs: dict[str, Repair] = {}
        attention, mlp = adapter.blocks(layer)
        parts = (
            (attention, plan.kv_heads, statistics.attention if statistics else None),
            (mlp, plan.neurons, statistics.mlp if statistics else None),
        )
        with at_hand(adapter.layers[layer]):
            for block, kept, known in parts:
                if len(kept) < block.num_units:
                    change = _change(block, torch.tensor(kept), compensation, known)
                    write(change)
                    if change.repair is not None:
                        repairs[block.name] = change.repair
        adapter.refresh(layer)
        return repairs

    return compress_layer


@torch.no_grad()
def _change(block: Block, kept_U: Tensor, compensation: Compensation, statistics: Statistics | None) -> Change:
    pruned_U = torch.tensor(sorted(set(range(block.num_units)) - set(kept_U.tolist())))
    output, device = block.output, block.output.weight.device
    known = statistics and statistics.to(device)
    kept, pruned = channels(block, kept_U).to(device), channels(block, pruned_U).to(device)
    fit_it = compensation.fit if block.num_experts == 1 else partial(_fit_each_expert, compensation, block.num_experts)
    fit = fit_it(output.weight.float(), known, kept, pruned)
    bias_O: Tensor | None = output.bias
    if fit.bias_O is not None:
        bias_O = fit.bias_O if bias_O is None else bias_O.float() + fit.bias_O
    dtype = output.weight.dtype
    bias_O = None if bias_O is None else bias_O.to(dtype)
    return Change(block, kept_U, pruned_U, fit.weight_OK.to(dtype), bias_O, fit.repair)


def _fit_each_expert(
    compensation: Compensation,
    experts: int,
    weight_OI: Tensor,
    statistics: Statistics | None,
    kept_K: Tensor,
    pruned_P: Tensor,
) -> Fit:
    """Each expert's fit on its own channels and tokens, side by side; the bias is bias_EO."""
    first_E = torch.arange(experts, device=kept_K.device)[:, None] * (weight_OI.shape[1] // experts)
    fits = [
        compensation.fit(*of_one)
        for of_one in zip(
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
    """Input channels of the output projection that belong to these units, ascending."""
    return block.columns_UC[units_U].flatten().sort().values


def assign(linear: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give a Linear, or what looks like one, new tensors and the widths that go with them."""
    if not isinstance(linear, nn.Linear):
        linear.assign(weight, bias)
        return
    trainable = linear.weight.requires_grad
    set_weight(linear, weight)
    new_bias = None if bias is None else nn.Parameter(bias.contiguous(), requires_grad=trainable)
    linear.register_parameter("bias", new_bias)
    linear.out_features, linear.in_features = weight.shape


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a module a new weight; it is trained where the old one was."""
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=cast(Tensor, module.weight).requires_grad)
