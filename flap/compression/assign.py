"""Replacing the tensors of a projection, or of a norm."""

from typing import Any, cast

from torch import Tensor, nn


def assign(linear: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Replace the tensors of a Linear, or of a `LinearLike`, and update its widths."""
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
