"""The attention or the MLP of one layer as a block, divided into the units that are pruned.

Legend: U units · C input channels that a unit owns in the output projection · R rows that a unit
owns in an input projection · T tokens · P positions of a batch · M members of a block.
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
    """A value for the attention of a layer and one for its MLP, such as scores, units or prices."""

    attention: T
    mlp: T


class LinearLike(ABC):
    """The base class of projections that have the attributes of a Linear without being one.

    Subclasses may have `assign(weight, bias)`, which replaces their tensors.
    """

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
    """The inputs that a forward pass gives to the output projections of a block's members."""

    # The inputs (…, C) of each member's output projection, for the tokens that reach the member.
    activations: Sequence[Tensor]
    # The number of all tokens, if tokens that do not reach a member count as zeros.
    num_tokens: int | None = None
    # The factors of the members' outputs: 0 if a token does not reach the member.
    weight_TM: Tensor | None = None
    # For members that are removed whole: their outputs and numbers (`whole_experts.OfToken`).
    routed: Iterable[Tensor] = ()


class UnitTensor(NamedTuple):
    """A tensor of a block that loses rows or columns with each unit."""

    holder: Any  # a module or a `LinearLike`
    name: str
    indices_UR: Tensor  # the rows or columns of each unit
    axis: int = 0  # 0: the units own rows, 1: they own columns

    @property
    def values(self) -> Tensor:
        """The values of the tensor, as the holder has it now."""
        return cast(Tensor, getattr(self.holder, self.name))


@dataclass(frozen=True)
class Block:
    """The attention or the MLP of one layer, divided into the units that are pruned.

    To remove a unit means to remove its rows of the input projections and its columns of the output
    projection. A unit of an attention is a KV head with the query heads that read it; in multi-head
    attention that is one head. A unit of an MLP is a neuron. Some blocks consist of other blocks,
    their members.
    """

    name: str
    output: Any  # the output projection: a Linear or a `LinearLike`
    columns_UC: Tensor
    # The input projections, or a router, each with its rows_UR.
    inputs: tuple[tuple[Any, Tensor], ...]
    # RMS norms, each with the input projection whose outputs it normalises.
    norms: tuple[tuple[Any, nn.Linear], ...] = ()
    # Parameters or buffers beside the projections: module, name and rows_UR.
    vectors: tuple[tuple[Any, str, Tensor], ...] = ()
    num_chosen: int = 1  # the number of members that a token reaches

    # What messages call a unit. The keys of plan.json have the plural.
    unit: ClassVar[str] = "neuron"
    whole: ClassVar[bool] = False  # whether each unit is a whole member

    @property
    def num_units(self) -> int:
        return self.columns_UC.shape[0]

    @property
    def members(self) -> "Sequence[Block]":
        """The blocks that this block consists of. A plain block has only itself.

        Each member has its own tokens and output bias. Channels and units are numbered member after
        member. All members keep the same number of units (see `whole`).
        """
        return (self,)

    @property
    def idle(self) -> int:
        """The number of parameters in members that a token is not sent to."""
        return 0

    @property
    def fewest(self) -> int:
        """The number of units that always stay: all if no input projection can lose rows."""
        return 0 if self.inputs else self.num_units

    @property
    def watched(self) -> nn.Module:
        """The module at which calibration puts its hook. `observe` reads the arguments it gets."""
        return cast(nn.Module, getattr(self.output, "module", self.output))

    def observe(self, args: tuple[Any, ...], mask_P: Tensor | None = None) -> Observed:
        """Compute the inputs of the output projections from the arguments of `watched`.

        mask_P: The positions that count. None means all.
        """
        hidden = args[0]
        if mask_P is not None:
            hidden = hidden.flatten(end_dim=-2)[mask_P]
        return Observed([hidden])

    @property
    def unit_tensors(self) -> list[UnitTensor]:
        """The parameters that become smaller if a unit is removed.

        The output's own bias is not among them, because it is never removed.
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
        """The number of prunable parameters."""
        return sum(tensor.values.numel() for tensor in self.unit_tensors)

    @property
    def unit_price(self) -> int:
        """The number of parameters that are removed with one unit."""
        return self.num_parameters // max(self.num_units, 1)


@dataclass(frozen=True)
class Transposed(LinearLike):
    """A Conv1D of GPT-2 with the attributes of a Linear: its weight is transposed."""

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

    Also updates the widths of a Linear. A parameter is trainable if the old one was. A new
    parameter is trainable if the first parameter of the module is.
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
    """Return the bias of an input projection. Most routers have none."""
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
    """The block that a layer lacks, because it has only an attention or only an MLP."""

    @classmethod
    def of(cls, name: str, layer: nn.Module) -> "NoBlock":
        return cls(name, NoOutput(layer), split(0, 0), ())

    @property
    def unit_tensors(self) -> list[UnitTensor]:
        return []

    def observe(self, args: tuple[Any, ...], mask_P: Tensor | None = None) -> Observed:
        return super().observe((args[0][..., :0],), mask_P)


def split(channels: int, units: int) -> Tensor:
    """Return channel indices as (units, channels / units): a unit owns consecutive channels."""
    return torch.arange(channels).reshape(units, channels // max(units, 1))
