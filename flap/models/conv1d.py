"""GPT-2's Conv1D as a Linear: the same computation with the weight transposed.

Legend: O output channels · I input channels.
"""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flap.models.block import LinearLike


@dataclass(frozen=True)
class Transposed(LinearLike):
    """A Conv1D with the attributes of a Linear."""

    module: Any

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.module.weight).T

    @property
    def bias(self) -> Tensor:
        return cast(Tensor, self.module.bias)

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        trainable = self.module.weight.requires_grad
        self.module.weight = nn.Parameter(weight.T.contiguous(), requires_grad=trainable)
        self.module.bias = nn.Parameter(bias.contiguous(), requires_grad=trainable)
        refresh_conv1d(self.module)


def as_linear(module: nn.Module) -> Any:
    """Return a module with the attributes of a Linear: the Linear itself, or a view of a Conv1D."""
    return Transposed(module) if isinstance(module, Conv1D) else module


def refresh_conv1d(layer: nn.Module) -> None:
    """Update the widths of each Conv1D in a layer after its tensors have changed."""
    for module in layer.modules():
        if isinstance(module, Conv1D):
            module.nx, module.nf = cast(Tensor, module.weight).shape
