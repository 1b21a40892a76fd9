"""Compute the first-order effect that removing each unit has on the loss, with backward passes.

The whole model must be on one device. As soon as the gradient of a matrix is computed, it is
multiplied by the weights of the matrix, element by element. The products are summed for each unit,
and the gradient is freed. So only the gradient of one matrix is in memory at a time.

A block is the attention or the MLP of a layer. A unit is a KV head with its query heads, a neuron,
or an expert. In a mixture of experts, the members of the MLP are its experts. A token is counted in
the loss if its mask is true.

Legend: N: windows · T: tokens in a window · D: hidden size · Q: positions of a batch that predict a
counted token · U: units of a block · M: members of a block · R: rows or columns of a unit in a
tensor.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flap.data import Batch
from flap.method.calibration.statistics import LayerStatistics, with_effects
from flap.models import Block, ModelAdapter, Pair, PlacedModel
from flap.models.block import UnitTensor
from flap.models.devices import widest_float
from flap.models.forward import final_states
from flap.models.predictions import positions_per_chunk
from flap.runtime import ranks
from flap.runtime.progress import progress
from flap.runtime.temporary_state import replaced


class UnitSums:
    """For each unit of a block, the sum of w · ∂L/∂w over the unit's weights w. L is the loss."""

    def __init__(self, block: Block) -> None:
        device = block.output.weight.device
        self.block = block
        self.sum_U = torch.zeros(block.num_units, dtype=widest_float(device), device=device)

    def add(self, tensor: UnitTensor) -> None:
        """Add the products w · ∂L/∂w of one tensor of the block to the sums of the block's units.

        tensor: a tensor of the block, whose values w have been replaced with these products.
        """
        products = tensor.values
        dtype = self.sum_U.dtype
        if products.ndim > 1:
            products = products.sum(dim=1 - tensor.axis, dtype=dtype)
        indices_UR = tensor.indices_UR.to(products.device)
        self.sum_U += products[indices_UR].sum(dim=1, dtype=dtype)


def add_effects(
    layers: Sequence[LayerStatistics], model: PlacedModel, batches: Sequence[Batch]
) -> list[LayerStatistics]:
    """Return copies of the statistics with the effect that removing each unit has on the loss.

    The effect is computed to first order, from the gradients of the loss.

    batches: the windows that this process runs; may be empty.
    """
    added = []
    for statistics, effects in zip(layers, first_order_effects(model, batches), strict=True):
        blocks = []
        for members, effect_U in zip(statistics.blocks, effects, strict=True):
            effect_MU = torch.stack(effect_U.chunk(len(members)))
            blocks.append(with_effects(members, effect_MU))
        added.append(replace(statistics, blocks=Pair(*blocks)))
    return added


def first_order_effects(model: PlacedModel, batches: Sequence[Batch]) -> list[Pair[Tensor]]:
    """Return the first-order effect of each unit on the loss L, for both blocks of each layer.

        effect_U = Σ w · ∂L/∂w, summed over the weights w of a unit

    L is the mean cross-entropy of the next token, in nats per token, over all counted next tokens
    in the windows of all processes. The effects are linear in L, so they can be summed over
    batches. To first order, removing a unit changes L by -effect_U.

    Raises:
        ValueError: gradients are not finite (the message names their block), or weights cannot have
            gradients.
    """
    if any(parameter.is_inference() for parameter in model.model.parameters()):
        raise ValueError(
            "model: its weights were loaded in torch.inference_mode and cannot have gradients; "
            "load it outside of this mode"
        )
    model.passes += 1
    adapter = model.adapter
    sums = []
    for i in range(len(adapter.layers)):
        attention, mlp = adapter.blocks(i)
        sums.append(Pair(UnitSums(attention), UnitSums(mlp)))

    num_predicted = 0
    every_block = [of_block for pair in sums for of_block in pair]
    with torch.enable_grad(), _summing(model.model, every_block):
        for batch in progress(batches, "gradients", Batch.numel):
            num_predicted += _backward(adapter, batch)

    total = max(1, sum(ranks.gather(num_predicted)))
    return [Pair(_mean(attention, total), _mean(mlp, total)) for attention, mlp in sums]


def _mean(sums: UnitSums, num_predicted: int) -> Tensor:
    """Add up the sums of all processes, and divide them by the number of predicted tokens.

    The result is on the CPU.
    """
    ranks.add_up(sums.sum_U)
    if not torch.isfinite(sums.sum_U).all():
        raise ValueError(
            f"calibration: gradients of {sums.block.name} are not finite; try "
            "model.dtype=float32 or bfloat16, or check the weights"
        )
    return sums.sum_U.cpu() / num_predicted


@contextmanager
def _summing(model: nn.Module, blocks: Sequence[UnitSums]) -> Iterator[None]:
    """During a `with` statement, add the products w · ∂L/∂w of each backward pass to the sums.

    Afterwards, all parameters get back the gradients and the `requires_grad` that they had before.
    """
    parameters = list(model.parameters())
    with ExitStack() as stack:
        stack.enter_context(replaced("grad", None, *parameters))
        stack.enter_context(replaced("requires_grad", True, *parameters))
        tensors_of = defaultdict[Tensor, list[tuple[UnitSums, UnitTensor]]](list)
        for sums in blocks:
            for tensor in sums.block.unit_tensors:
                tensors_of[_parameter_of(tensor.values)].append((sums, tensor))

        for parameter in parameters:
            parameter.requires_grad = parameter in tensors_of
        for weight, tensors in tensors_of.items():
            hook = weight.register_post_accumulate_grad_hook(partial(_take_gradient, tensors))
            stack.callback(hook.remove)
        yield


def _parameter_of(tensor: Tensor) -> Tensor:
    """Return the parameter that a tensor is a view of, or the tensor itself if it is a parameter.

    For example, flap treats a Conv1D of GPT-2 as a Linear. The weight of this Linear is a view, the
    transpose of the Conv1D's parameter.
    """
    node: Any = tensor.grad_fn
    if node is None:
        return tensor
    while node.next_functions:
        node, _ = node.next_functions[0]
    parameter: Tensor = node.variable
    return parameter


@torch.no_grad()
def _take_gradient(tensors: Sequence[tuple[UnitSums, UnitTensor]], parameter: Tensor) -> None:
    """Add the products w · ∂L/∂w of a parameter's weights w to the sums, and free the gradient.

    While the products are added, they replace the values of the parameter. So if the tensor of a
    block is a view of the parameter, such as its transpose, the view contains the products.
    """
    weight = parameter.data
    assert parameter.grad is not None
    products = parameter.grad.float().mul_(weight)
    parameter.grad = None
    parameter.data = products
    try:
        for sums, tensor in tensors:
            sums.add(tensor)
    finally:
        parameter.data = weight


def _backward(adapter: ModelAdapter, batch: Batch) -> int:
    """Run a forward and a backward pass on a batch, and return the number of predicted tokens.

    The loss is the sum of the tokens' cross-entropies instead of the mean, because gradients of the
    mean may underflow in float16. Logits are computed for one chunk of positions at a time.
    """
    device = adapter.model.device
    tokens_NT = batch.tokens_NT.to(device)
    counts_NT = batch.mask_NT[:, 1:].to(device)
    label_Q = tokens_NT[:, 1:][counts_NT]
    if not len(label_Q):
        return 0

    hidden_NTD = final_states(adapter, tokens_NT).unflatten(0, tokens_NT.shape)
    hidden_QD = hidden_NTD[:, :-1][counts_NT]
    leaf_QD = hidden_QD.detach().requires_grad_()
    chunk = positions_per_chunk(adapter.vocab_size)
    gradients = []
    for hidden, label in zip(leaf_QD.split(chunk), label_Q.split(chunk), strict=True):
        nats = cross_entropy(adapter.logits(hidden).float(), label, reduction="sum")
        gradients += torch.autograd.grad(nats, hidden)
    hidden_QD.backward(torch.cat(gradients))
    return len(label_Q)
