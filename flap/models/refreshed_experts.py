"""What the experts of a mixture need after their tensors have changed: a class, widths, and a kernel that fits."""

import copy
from types import MethodType
from typing import Any

from torch import nn

from flap.modeling.modeling_flap import KERNEL_MULTIPLE, add_biases
from flap.models.block import Block
from flap.models.experts import ExpertsBlock, num_neurons

WIDTHS = ("intermediate_size", "intermediate_dim", "expert_dim")  # attributes of experts


def refresh_experts(experts: Any) -> None:
    """Update the width and the number of experts after the tensors have changed, and choose the kernel."""
    experts.num_experts = len(experts.down_proj)
    add_biases(experts)
    if hasattr(experts, "_old_forward"):  # accelerate's, which has taken it from the class before
        forward = MethodType(type(experts).forward, experts)
        if experts.forward == experts._old_forward:  # in `onloaded`, which takes the hook away
            experts.forward = forward
        experts._old_forward = forward
    for name in WIDTHS:
        if hasattr(experts, name):
            setattr(experts, name, num_neurons(experts))
    choose_kernel(experts)


def is_experts(module: nn.Module) -> bool:
    """Return whether a module holds the experts of a mixture, stacked in tensors."""
    return getattr(module._parameters.get("down_proj"), "ndim", 0) == 3


def choose_kernel(experts: Any) -> None:
    """Let experts of a width that the grouped kernel does not take run one after another."""
    if hasattr(experts, "config") and num_neurons(experts) % KERNEL_MULTIPLE:
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation = "eager"


def experts_fit_kernel(mlp: Block) -> bool:
    """Return whether the grouped kernel can run the experts of this block; true for a plain MLP, which needs none."""
    return not isinstance(mlp, ExpertsBlock) or num_neurons(mlp.output.experts) % KERNEL_MULTIPLE == 0
