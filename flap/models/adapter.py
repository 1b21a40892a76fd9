"""Roles, not attribute paths: what every other stage may ask of a decoder-only model.

Legend: U units · C input channels a unit owns in the output projection · R rows a unit owns in an input projection.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """One layer's attention or MLP, seen as units that leave together: rows of its inputs, columns of its output.

    An attention unit is a KV head with the query heads that read it (under multi-head attention: one head);
    an MLP unit is a neuron.
    """

    name: str
    output: Any  # a Linear, or what looks like one
    columns_UC: Tensor
    inputs: tuple[tuple[Any, Tensor], ...]  # each a Linear, or what looks like one, with its rows_UR
    norms: tuple[tuple[Any, nn.Linear], ...] = ()  # each an RMS norm over all that one of the inputs puts out

    @property
    def num_units(self) -> int:
        return self.columns_UC.shape[0]

    @property
    def num_experts(self) -> int:
        """MLPs that a router chooses from: each has as many units as the others, and an output bias of its own."""
        return 1

    @property
    def watched(self) -> nn.Module:
        """The module whose arguments `activations` reads."""
        return cast(nn.Module, self.output)

    def activations(self, args: tuple[Any, ...]) -> Sequence[Tensor]:
        """What flows into the output projection (…, C), once for each expert, from the arguments of `watched`."""
        return [args[0]]

    @property
    def num_parameters(self) -> int:
        """Every parameter that belongs to some unit, counted from the tensors; the output's own bias never leaves."""
        inputs: list[Any] = [linear for linear, _ in self.inputs]
        biases = sum(linear.bias.numel() for linear in inputs if linear.bias is not None)
        weights: list[Tensor] = [module.weight for module in (self.output, *inputs, *(norm for norm, _ in self.norms))]
        return int(biases + sum(weight.numel() for weight in weights))

    @property
    def unit_price(self) -> int:
        """Parameters that leave with one unit."""
        return self.num_parameters // self.num_units


class ModelAdapter(ABC):
    """A model of one family. Layers are counted from 0; a subclass names the Linear modules behind each role."""

    model_types: ClassVar[tuple[str, ...]]

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def decoder(self) -> PreTrainedModel:
        """The model without its LM head: what calibration runs."""
        return self.model.base_model

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of any number of final hidden states; a family that caps or scales its logits says so."""
        return cast(Tensor, self.model.get_output_embeddings()(hidden))

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last; a family that keeps them elsewhere says so."""
        return cast(nn.ModuleList, self.decoder.layers)

    @abstractmethod
    def attention(self, layer: int) -> Block:
        """The attention of a layer; its units are KV heads with their query heads."""

    @abstractmethod
    def mlp(self, layer: int) -> Block:
        """The MLP of a layer; its units are neurons."""

    @abstractmethod
    def queries_per_group(self, layer: int) -> int:
        """Query heads that share one KV head; 1 under multi-head attention."""

    @abstractmethod
    def widths(self, layer: int) -> dict[str, int]:
        """The layer's heads and neurons, under the names that the family's config has for them."""

    @abstractmethod
    def refresh(self, layer: int) -> None:
        """Set the module attributes that repeat a width to what the tensors say now."""

    @property
    def head_dim(self) -> int:
        """Channels of one head, the same in all layers."""
        return self.attention(0).columns_UC.shape[1] // self.queries_per_group(0)

    def layer_config(self, layer: int) -> dict[str, int | bool]:
        """The layer's own values of the config keys that pruning changes (checkpoint: `per_layer_config`)."""
        attention, mlp = self.blocks(layer)
        has_bias = {"attention_output_bias": attention.output, "mlp_output_bias": mlp.output}
        return self.widths(layer) | {name: output.bias is not None for name, output in has_bias.items()}

    def blocks(self, layer: int) -> tuple[Block, Block]:
        return self.attention(layer), self.mlp(layer)

    def num_parameters(self) -> int:
        """Prunable parameters of all decoder layers: the denominator of the ratio."""
        return sum(block.num_parameters for i in range(len(self.layers)) for block in self.blocks(i))


def split(channels: int, units: int) -> Tensor:
    """Indices 0 … channels - 1 as (units, channels / units): unit u owns a run of neighbours."""
    return torch.arange(channels).reshape(units, -1)
