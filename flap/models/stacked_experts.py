"""The experts of a mixture as transformers stores them, stacked in two parameters, which pruning reads and replaces.

Neuron i of expert e is number e · I + i. After compensation each expert has its own output bias.
Legend: E experts · I neurons of one expert · H hidden size.
"""

import copy
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn

from flap.modeling.modeling_flap import KERNEL_MULTIPLE, add_biases
from flap.models.block import LinearLike, set_tensor

GATE_UP, UP, DOWN = "gate_up_proj", "up_proj", "down_proj"  # the parameters
PARTS = {GATE_UP: 2, UP: 1}  # the rows that a neuron has in its input projections
WIDTHS = ("intermediate_size", "intermediate_dim", "expert_dim")  # attributes of experts


@dataclass(frozen=True)
class Stacked(LinearLike):
    """A projection of all experts as one Linear, from or to the neurons of all, expert after expert."""

    experts: Any
    name: str  # of the parameter: the gate and up projections, or the down projections
    whole: bool = False  # whole experts are removed

    @property
    def weight(self) -> Tensor:
        """The weights: (E · 2I, H) of gate and up, (E · I, H) of up alone, (H, E · I) of down."""
        weight_ERC = as_stored(self.experts, getattr(self.experts, self.name))
        return (
            weight_ERC.flatten(0, 1) if self.name != DOWN else weight_ERC.transpose(0, 1).flatten(1)
        )

    @property
    def bias(self) -> Tensor | None:
        """The biases of all experts, one after the other; in most families None before compensation."""
        bias_ER: Tensor | None = getattr(self.experts, f"{self.name}_bias", None)
        return None if bias_ER is None else bias_ER.flatten()

    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights, as many rows (of down: columns) for every expert, and the biases."""
        axis = 0 if self.name != DOWN else 1
        size = self.weight.shape[axis] // self.experts.num_experts
        weight = weight.unflatten(
            axis, (-1, size) if self.whole else (self.experts.num_experts, -1)
        )
        weight_ERC = weight if axis == 0 else weight.transpose(0, 1)
        set_tensor(self.experts, self.name, as_stored(self.experts, weight_ERC))
        if bias is not None:
            set_tensor(self.experts, f"{self.name}_bias", bias.unflatten(0, (len(weight_ERC), -1)))


@dataclass(frozen=True)
class DownOfOne:
    """The down projection of one expert as a Linear (H, I)."""

    experts: Any
    index: int

    @property
    def weight(self) -> Tensor:
        return as_stored(self.experts, self.experts.down_proj)[self.index].contiguous()

    @property
    def bias(self) -> Tensor | None:
        bias_EH: Tensor | None = getattr(self.experts, "down_proj_bias", None)
        return None if bias_EH is None else bias_EH[self.index]


def stacked_inputs(experts: Any) -> str:
    """Return the name of the parameter with the input projections; experts without a gate have `up_proj`."""
    return GATE_UP if hasattr(experts, GATE_UP) else UP


def num_neurons(experts: Any) -> int:
    return as_stored(experts, experts.down_proj).shape[2]


def as_stored(experts: Any, weight: Tensor) -> Tensor:
    """Return weights (E, output, input) as the experts store them, or the reverse.

    Some store (E, input, output): also Llama 4's, which have no attribute that says so.
    """
    return weight.transpose(1, 2) if getattr(experts, "is_transposed", True) else weight


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
    if hasattr(experts, "config") and not experts_fit_kernel(experts):
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation = "eager"


def experts_fit_kernel(experts: Any) -> bool:
    """Return whether the grouped kernel takes experts of this width."""
    return num_neurons(experts) % KERNEL_MULTIPLE == 0
