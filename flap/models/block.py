"""The attention or the MLP of one layer as a block of the units that are pruned, and values for both of a layer.

Legend: U units · C input channels a unit owns in the output projection · R rows a unit owns in an input projection ·
T tokens · M members of a block.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

T = TypeVar("T")


class Pair(NamedTuple, Generic[T]):
    """A value for the attention of a layer and one for its MLP: blocks, statistics, scores, units or prices."""

    attention: T
    mlp: T


class LinearLike(ABC):
    """The base of projections that are no Linear but are read as one, and replaced by `assign(weight, bias)`."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The weights (outputs, inputs)."""

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        return int(self.weight.shape[0])


class Observed(NamedTuple):
    """What the output projections of a block's members get in a forward pass."""

    activations: Sequence[
        Tensor
    ]  # the inputs of each member's output projection (…, C), for the tokens that reach it
    num_tokens: int | None = (
        None  # of all tokens, where those that do not reach a member count as zeros
    )
    weight_TM: Tensor | None = (
        None  # by which the outputs of the members are multiplied, 0 where no token is sent
    )
    routed: Iterable[
        Tensor
    ] = ()  # of members that are removed whole: outputs and numbers (`whole_experts.OfToken`)


@dataclass(frozen=True)
class Block:
    """The attention or the MLP of one layer, divided into the units that are pruned.

    To remove a unit means to remove its rows of the input projections and its columns of the output projection.
    An attention unit is a KV head with the query heads that read it (under multi-head attention: one head);
    an MLP unit is a neuron. Some blocks are groups of others, their members.
    """

    name: str
    output: Any  # the output projection: a Linear or a `LinearLike`
    columns_UC: Tensor
    inputs: tuple[
        tuple[Any, Tensor], ...
    ]  # the input projections, or a router, each with its rows_UR
    norms: tuple[
        tuple[Any, nn.Linear], ...
    ] = ()  # each an RMS norm over all outputs of an input projection
    vectors: tuple[
        tuple[Any, str, Tensor], ...
    ] = ()  # parameters or buffers beside them: module, name and rows_UR
    num_chosen: int = 1  # of the members, how many a token reaches

    unit: ClassVar[str] = (
        "neuron"  # what a unit of an MLP is called in messages and, in the plural, in plan.json
    )
    whole: ClassVar[bool] = False  # whether each unit is a whole member

    @property
    def num_units(self) -> int:
        return self.columns_UC.shape[0]

    @property
    def members(self) -> "Sequence[Block]":
        """The blocks that this one consists of, each of which has its own tokens and bias; a plain one has only itself.

        Their channels and units count through, member by member. All keep the same number of units (see `whole`).
        """
        return (self,)

    @property
    def idle(self) -> int:
        """The parameters that a token does not reach: those of the members that it is not sent to."""
        return 0

    @property
    def fewest(self) -> int:
        """The number of units that stay in any case: all of them where no input projection can lose rows."""
        return 0 if self.inputs else self.num_units

    @property
    def watched(self) -> nn.Module:
        """The module at which calibration puts its hook; `observe` reads the arguments of its forward."""
        return cast(nn.Module, getattr(self.output, "module", self.output))

    def observe(self, args: tuple[Any, ...], counted_P: Tensor | None = None) -> Observed:
        """Return what the output projections get, from the arguments of `watched`, at the positions that count."""
        return Observed([args[0] if counted_P is None else args[0].flatten(end_dim=-2)[counted_P]])

    @property
    def num_parameters(self) -> int:
        """The number of prunable parameters, counted from the tensors; the output's own bias is never removed."""
        inputs: list[Any] = [linear for linear, _ in self.inputs]
        tensors: list[Tensor] = [
            module.weight for module in (self.output, *inputs, *(norm for norm, _ in self.norms))
        ]
        tensors += [bias for linear in inputs if (bias := bias_of(linear)) is not None]
        tensors += [
            getattr(module, name) for module, name, _ in self.vectors if name in module._parameters
        ]
        return sum(tensor.numel() for tensor in tensors)

    @property
    def unit_price(self) -> int:
        """The number of parameters that are removed with one unit."""
        return self.num_parameters // max(self.num_units, 1)


@dataclass(frozen=True)
class Transposed(LinearLike):
    """GPT-2's Conv1D with the attributes of a Linear: the same computation with the weight transposed."""

    module: Any

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.module.weight).T

    @property
    def bias(self) -> Tensor:
        return cast(Tensor, self.module.bias)

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        set_tensor(self.module, "weight", weight.T)
        set_tensor(self.module, "bias", bias)
        refresh_conv1d(self.module)


def set_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a buffer or a parameter of a module, or add a parameter, and update the widths of a Linear.

    A parameter is trainable if the old one was; a new one, if the first one beside it is.
    """
    if name in module._buffers:
        module._buffers[name] = tensor
        return
    old = module._parameters.get(name)
    like = next(module.parameters(recurse=False)) if old is None else old
    module.register_parameter(
        name, nn.Parameter(tensor.contiguous(), requires_grad=like.requires_grad)
    )
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape


def bias_of(linear: Any) -> Tensor | None:
    """Return the bias of an input projection; most routers have none."""
    return getattr(linear, "bias", None)


def as_linear(module: nn.Module) -> Any:
    """Return a module with the attributes of a Linear: the Linear itself, or a view of a Conv1D."""
    return Transposed(module) if isinstance(module, Conv1D) else module


def refresh_conv1d(layer: nn.Module) -> None:
    """Update the widths of each Conv1D in a layer after its tensors have changed."""
    for module in layer.modules():
        if isinstance(module, Conv1D):
            module.nx, module.nf = cast(Tensor, module.weight).shape


@dataclass(frozen=True)
class NoOutput(LinearLike):
    """The output projection that a layer lacks, as a Linear without channels."""

    module: nn.Module  # the layer
    bias: ClassVar[None] = None

    @property
    def weight(self) -> Tensor:
        norm = next(parameter for parameter in self.module.parameters() if parameter.ndim == 1)
        return norm.new_empty(len(norm), 0)


class NoBlock(Block):
    """The attention or the MLP of a layer that has the other alone."""

    @classmethod
    def of(cls, name: str, layer: nn.Module) -> "NoBlock":
        return cls(name, NoOutput(layer), split(0, 0), ())

    def observe(self, args: tuple[Any, ...], counted_P: Tensor | None = None) -> Observed:
        return super().observe((args[0][..., :0],), counted_P)


def split(channels: int, units: int) -> Tensor:
    """Return the indices 0 … channels - 1 as (units, channels / units): each unit owns consecutive channels."""
    return torch.arange(channels).reshape(units, channels // max(units, 1))
