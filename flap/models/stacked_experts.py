"""Access the experts of a layer, whose weights transformers stacks in two parameters.

Neuron i of expert e has the index e · I + i among the neurons of all experts. FLAP's bias
compensation, which replaces the mean output of removed neurons, adds output biases to the experts.

Legend: E: experts · I: neurons of one expert · H: hidden size · R: rows of the matrix of one
expert · C: columns of this matrix.
"""

import copy
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn

from flap.modeling.modeling_flap import KERNEL_MULTIPLE, add_biases
from flap.models.block import LinearLike, set_tensor

# The names of the stacked parameters.
GATE_UP = "gate_up_proj"
UP = "up_proj"
DOWN = "down_proj"
PARTS = {GATE_UP: 2, UP: 1}  # the number of rows of each parameter that belong to one neuron
# names of the attributes in which modules of experts store the number of neurons of an expert
WIDTHS = ("intermediate_size", "intermediate_dim", "expert_dim")


@dataclass(frozen=True)
class Stacked(LinearLike):
    """The input projections or the down projections of all experts of a layer, as one Linear."""

    experts: Any
    name: str  # the name of the stacked parameter, such as "gate_up_proj"
    whole: bool = False  # whether pruning removes whole experts, instead of neurons of each expert

    @property
    def weight(self) -> Tensor:
        """The projections of all experts as one matrix.

        The shape is (E · 2I, H) for gate and up projections, (E · I, H) for up projections without
        gates, and (H, E · I) for down projections.
        """
        weight_ERC = as_stored(self.experts, getattr(self.experts, self.name))
        if self.name == DOWN:
            return weight_ERC.transpose(0, 1).flatten(1)
        return weight_ERC.flatten(0, 1)

    @property
    def bias(self) -> Tensor | None:
        """The concatenated biases of all experts; None if the experts have no biases."""
        bias_ER: Tensor | None = getattr(self.experts, f"{self.name}_bias", None)
        return None if bias_ER is None else bias_ER.flatten()

    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights and the biases.

        The rows (for the down projection, the columns) are divided equally among the experts. If
        `whole` is true, each expert keeps its size instead, and the number of experts follows from
        the new weights.
        """
        axis = 1 if self.name == DOWN else 0
        number = self.experts.num_experts
        size = self.weight.shape[axis] // number
        weight = weight.unflatten(axis, (-1, size) if self.whole else (number, -1))
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
    """Return the name of the parameter with the input projections."""
    return GATE_UP if hasattr(experts, GATE_UP) else UP


def num_neurons(experts: Any) -> int:
    """Return the number of neurons of each expert."""
    return as_stored(experts, experts.down_proj).shape[2]


def as_stored(experts: Any, weight: Tensor) -> Tensor:
    """Convert weights between (E, output, input) and the order of axes in which they are stored.

    Experts whose attribute `is_transposed` is true store (E, input, output). The experts of Llama 4
    also store (E, input, output), but lack this attribute.
    """
    return weight.transpose(1, 2) if getattr(experts, "is_transposed", True) else weight


def refresh_experts(experts: Any) -> None:
    """Make a module of stacked experts agree with its tensors after pruning has changed them.

    The stored numbers of experts and neurons are updated. If the experts now have output biases
    that their class does not add, the module gets a class that adds them. If transformers' grouped
    kernel does not support the new number of neurons, the experts run in a loop.
    """
    experts.num_experts = len(experts.down_proj)
    add_biases(experts)
    # `add_biases` may have changed the class, but accelerate's hook still calls the `forward` of
    # the old class
    if hasattr(experts, "_old_forward"):
        forward = MethodType(type(experts).forward, experts)
        # inside a block of `onloaded`, both attributes are the old class's `forward`: replace both
        if experts.forward == experts._old_forward:
            experts.forward = forward
        experts._old_forward = forward
    for name in WIDTHS:
        if hasattr(experts, name):
            setattr(experts, name, num_neurons(experts))
    choose_kernel(experts)


def is_experts(module: nn.Module) -> bool:
    """Return whether a module contains the stacked experts of a mixture."""
    return getattr(module._parameters.get("down_proj"), "ndim", 0) == 3


def choose_kernel(experts: Any) -> None:
    """Run experts in a loop (`eager`) if the grouped kernel cannot run experts of their size."""
    if hasattr(experts, "config") and not experts_fit_kernel(experts):
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation = "eager"


def experts_fit_kernel(experts: Any) -> bool:
    """Return whether transformers' grouped kernel supports experts with this number of neurons."""
    return num_neurons(experts) % KERNEL_MULTIPLE == 0
