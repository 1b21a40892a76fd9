"""What the experts of a mixture need after their tensors have changed: output biases, widths, and a kernel that fits.

Legend: E experts · H hidden size · T tokens · K experts that a token is sent to.
"""

import copy
from typing import Any

from torch import Tensor, nn

from flap.modeling.modeling_flap import KERNEL_MULTIPLE
from flap.models.block import Block
from flap.models.experts import ExpertsBlock, has_bias, num_neurons
from flap.models.offload import onloaded

WIDTHS = ("intermediate_size", "intermediate_dim", "expert_dim")  # attributes of experts


def refresh_experts(experts: Any) -> None:
    """Update the width and the number of experts after the tensors have changed, and choose the kernel."""
    experts.num_experts = len(experts.down_proj)
    if hasattr(experts, "down_proj_bias") and not _adds_biases(experts):
        experts.register_forward_hook(add_output_biases)
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


def add_output_biases(experts: Any, args: tuple[Any, ...], output_TH: Tensor) -> Tensor:
    """Add Σ_k weight_k · bias of expert k to the output of the experts. A forward hook; it works with any kernel."""
    with onloaded(experts):
        if len(args) == 1:  # as in `_dispatched`: an output for each expert and token
            sent_ET1 = args[0].unflatten(0, (experts.num_experts, -1)).any(dim=-1, keepdim=True)
            bias_TH: Tensor = (sent_ET1 * experts.down_proj_bias[:, None]).flatten(0, 1)
        else:
            _, chosen_TK, weight_TK = args
            bias_TH = (weight_TK[..., None] * experts.down_proj_bias[chosen_TK]).sum(1)
    return output_TH + bias_TH.to(output_TH.dtype)


def _adds_biases(experts: Any) -> bool:
    """Return whether the biases are added already: by the family, the hook, or the class of a reloaded checkpoint."""
    names = {cls.__name__ for cls in type(experts).__mro__}
    reloaded = not names.isdisjoint(("BiasedExpertsMixin", "BiasedEachMixin"))
    return has_bias(experts) or add_output_biases in experts._forward_hooks.values() or reloaded
