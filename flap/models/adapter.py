"""Roles, not attribute paths: what every other stage may ask of a decoder-only model.

Legend: U units · C input channels a unit owns in the output projection · R rows a unit owns in an input projection.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, cast

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
    output: nn.Linear
    columns_UC: Tensor
    inputs: tuple[tuple[nn.Linear, Tensor], ...]  # each with its rows_UR

    @property
    def num_units(self) -> int:
        return self.columns_UC.shape[0]

    @property
    def num_parameters(self) -> int:
        """Every parameter that belongs to some unit, counted from the tensors; the output's own bias never leaves."""
        inputs = [linear for linear, _ in self.inputs]
        biases = sum(linear.bias.numel() for linear in inputs if linear.bias is not None)
        return biases + sum(linear.weight.numel() for linear in [self.output, *inputs])

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
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""

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
    def layer_config(self, layer: int) -> dict[str, int | bool]:
        """The layer's own values of the config keys that pruning changes (checkpoint: `per_layer_config`)."""

    @abstractmethod
    def refresh(self, layer: int) -> None:
        """Set the module attributes that repeat a width to what the tensors say now."""

    def blocks(self, layer: int) -> tuple[Block, Block]:
        return self.attention(layer), self.mlp(layer)

    def num_parameters(self) -> int:
        """Prunable parameters of all decoder layers: the denominator of the ratio."""
        return sum(block.num_parameters for i in range(len(self.layers)) for block in self.blocks(i))


def split(channels: int, units: int) -> Tensor:
    """Indices 0 … channels - 1 as (units, channels / units): unit u owns a run of neighbours."""
    return torch.arange(channels).reshape(units, -1)
