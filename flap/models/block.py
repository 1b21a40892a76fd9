"""The attention or the MLP of one layer as a block, divided into the units that are pruned.

A unit is a KV head with its query heads, a neuron of an MLP, or an expert.

Legend: U: units · C: input channels of a unit in the output projection · R: rows of a unit in an
input projection · T: tokens · P: positions of a batch · M: members of a block (`Block.members`).
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
    """A pair of values, such as scores: one for a layer's attention and one for its MLP."""

    attention: T
    mlp: T


class LinearLike(ABC):
    """Base class of projections that have the attributes of `nn.Linear` without deriving from it.

    Subclasses may have a method `assign(weight, bias)`, which replaces the weight and the bias.
    """

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The weight matrix of shape (outputs, inputs)."""

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        return int(self.weight.shape[0])


class Observed(NamedTuple):
    """The inputs of a block's output projections in one forward pass.

    In a mixture of experts, each expert is a member of the block, and has an output projection. Any
    other block is its own single member.
    """

    # For each member, the inputs (…, channels) of its output projection. Only tokens that are
    # routed to the member are included. If whole experts are the units, the inputs are multiplied
    # by the router's weights.
    activations: Sequence[Tensor]
    # The number of all tokens. Set only if whole experts are the units, because a token that is not
    # routed to an expert then counts as a row of zeros in the activations of this expert.
    num_tokens: int | None = None
    # The factors by which the router multiplies the outputs of the members. Set only if neurons of
    # experts are the units. The factor of a token is 0 for members that it is not routed to.
    weight_TM: Tensor | None = None
    # For each expert, the outputs of the expert for the tokens that are routed to it, followed by
    # the fields of `whole_experts.OfToken` as additional columns. Empty unless whole experts are
    # the units.
    routed: Iterable[Tensor] = ()


class UnitTensor(NamedTuple):
    """A tensor of a block that loses rows or columns with each removed unit."""

    holder: Any  # the module or `LinearLike` that has the tensor as an attribute
    name: str
    indices_UR: Tensor  # the rows or columns of each unit
    axis: int = 0  # 0 if `indices_UR` are rows of the tensor, 1 if they are columns

    @property
    def values(self) -> Tensor:
        """The current value of the attribute `name` of the holder."""
        return cast(Tensor, getattr(self.holder, self.name))


@dataclass(frozen=True)
class Block:
    """The attention or the MLP of one layer, divided into the units that are pruned.

    Removing a unit means removing its rows of the input projections and its columns of the output
    projection. A unit of an attention is a KV head with the query heads that share it. In
    multi-head attention, a unit is one head. A unit of an MLP is a neuron. In a mixture of experts,
    a unit is a neuron of one expert, or a whole expert. The block of a mixture consists of other
    blocks, which are called members: one for each expert.
    """

    name: str
    output: Any  # the output projection: a Linear or a `LinearLike`
    columns_UC: Tensor
    # Pairs of an input projection and the indices of the rows that belong to each unit (rows_UR).
    # If units are whole experts, the router counts as an input projection.
    inputs: tuple[tuple[Any, Tensor], ...]
    # Pairs of an RMS norm and the input projection whose outputs this norm normalises.
    norms: tuple[tuple[Any, nn.Linear], ...] = ()
    # Other parameters or buffers that have values for each unit: the module, the name of the
    # attribute, and the indices of the values of each unit (rows_UR).
    vectors: tuple[tuple[Any, str, Tensor], ...] = ()
    num_chosen: int = 1  # number of members that each token is routed to

    # The name of an MLP's unit in messages. The plural of this name is a key in plan.json, which
    # lists the units that stay.
    unit: ClassVar[str] = "neuron"
    whole: ClassVar[bool] = False  # whether each unit is a whole expert

    @property
    def num_units(self) -> int:
        return self.columns_UC.shape[0]

    @property
    def members(self) -> "Sequence[Block]":
        """The blocks that this block consists of: one for each expert.

        The only member of a block without experts is the block itself.

        An expert gets only the tokens that are routed to it, and has a separate output bias. The
        channels and units of the block are numbered consecutively: first all of the first member,
        then all of the second member, and so on. After pruning, all members have the same number of
        units, unless units are whole experts (`whole`).
        """
        return (self,)

    @property
    def idle(self) -> int:
        """The number of parameters in the members that a token is not routed to."""
        return 0

    @property
    def fewest(self) -> int:
        """The minimum number of units that pruning keeps.

        A block without input projections cannot be pruned, so all of its units stay.
        """
        return 0 if self.inputs else self.num_units

    @property
    def watched(self) -> nn.Module:
        """The module on which calibration registers a forward pre-hook.

        The hook calls `observe` with the positional arguments of this module's forward pass.
        """
        return cast(nn.Module, getattr(self.output, "module", self.output))

    def observe(self, args: tuple[Any, ...], mask_P: Tensor | None = None) -> Observed:
        """Compute the inputs of the members' output projections from the arguments of `watched`.

        mask_P: a boolean mask of the positions to observe. None means all positions.
        """
        hidden = args[0]
        if mask_P is not None:
            hidden = hidden.flatten(end_dim=-2)[mask_P]
        return Observed([hidden])

    @property
    def unit_tensors(self) -> list[UnitTensor]:
        """The parameters that become smaller if a unit is removed.

        The bias of the output projection is not included, because its size does not depend on the
        number of units.
        """
        tensors = [UnitTensor(self.output, "weight", self.columns_UC, axis=1)]
        for linear, rows_UR in self.inputs:
            tensors.append(UnitTensor(linear, "weight", rows_UR))
            if bias_of(linear) is not None:
                tensors.append(UnitTensor(linear, "bias", rows_UR))

        rows_of = dict(self.inputs)
        for norm, linear in self.norms:
            tensors.append(UnitTensor(norm, "weight", rows_of[linear]))
        for module, name, rows_UR in self.vectors:
            if name in module._parameters:
                tensors.append(UnitTensor(module, name, rows_UR))
        return tensors

    @property
    def num_parameters(self) -> int:
        """The number of parameters in the tensors that become smaller if a unit is removed."""
        return sum(tensor.values.numel() for tensor in self.unit_tensors)

    @property
    def unit_price(self) -> int:
        """The number of parameters that are removed with one unit."""
        return self.num_parameters // max(self.num_units, 1)


@dataclass(frozen=True)
class Transposed(LinearLike):
    """A view of GPT-2's Conv1D as a Linear, with the transpose of the Conv1D's weight as weight."""

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
    """Replace a buffer or a parameter of a module, or add a parameter.

    If the module is a Linear, also update its `in_features` and `out_features`. The new
    parameter takes `requires_grad` from the parameter that it replaces, or if there is none, from
    the first parameter of the module.
    """
    if name in module._buffers:
        module._buffers[name] = tensor
        return
    like = module._parameters.get(name)
    if like is None:
        like = next(module.parameters(recurse=False))
    parameter = nn.Parameter(tensor.contiguous(), requires_grad=like.requires_grad)
    module.register_parameter(name, parameter)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape


def bias_of(linear: Any) -> Tensor | None:
    """Return the bias of an input projection or a router, or None if it has no bias."""
    return getattr(linear, "bias", None)


def as_linear(module: nn.Module) -> Any:
    """Return a module with the attributes of a Linear: the Linear itself, or a view of a Conv1D."""
    return Transposed(module) if isinstance(module, Conv1D) else module


def refresh_conv1d(layer: nn.Module) -> None:
    """Set the attributes `nx` and `nf` of each Conv1D in a layer to the shape of its weight."""
    for module in layer.modules():
        if isinstance(module, Conv1D):
            module.nx, module.nf = cast(Tensor, module.weight).shape


@dataclass(frozen=True)
class NoOutput(LinearLike):
    """A placeholder for a missing output projection: a Linear without input channels."""

    module: nn.Module  # the layer that lacks this output projection
    bias: ClassVar[None] = None

    @property
    def weight(self) -> Tensor:
        norm = next(parameter for parameter in self.module.parameters() if parameter.ndim == 1)
        return norm.new_empty(len(norm), 0)


class NoBlock(Block):
    """An empty block, which stands for the missing attention or the missing MLP of a layer."""

    @classmethod
    def of(cls, name: str, layer: nn.Module) -> "NoBlock":
        return cls(name, NoOutput(layer), split(0, 0), ())

    @property
    def unit_tensors(self) -> list[UnitTensor]:
        return []

    def observe(self, args: tuple[Any, ...], mask_P: Tensor | None = None) -> Observed:
        return super().observe((args[0][..., :0],), mask_P)


def split(channels: int, units: int) -> Tensor:
    """Return the indices of the channels of each unit, of shape (units, channels / units).

    The channels of a unit are consecutive.
    """
    return torch.arange(channels).reshape(units, channels // max(units, 1))
