"""The adapter of a decoder-only model: it gives the parts of the model by role, whatever the modules are called.

Legend: U units · C input channels a unit owns in the output projection · R rows a unit owns in an input projection.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from flap.models.replaced_forward import forwards_replaced

T = TypeVar("T")


class Pair(NamedTuple, Generic[T]):
    """A value for the attention of a layer and one for its MLP: blocks, statistics, scores, units or prices."""

    attention: T
    mlp: T


@dataclass(frozen=True)
class Block:
    """The attention or the MLP of one layer, divided into the units that are pruned.

    To remove a unit means to remove its rows of the input projections and its columns of the output projection.
    An attention unit is a KV head with the query heads that read it (under multi-head attention: one head);
    an MLP unit is a neuron, or an expert of a mixture where whole experts leave.
    """

    name: str
    output: Any  # the output projection: a Linear, or an object with the same attributes (experts.py, conv1d.py)
    columns_UC: Tensor
    inputs: tuple[tuple[Any, Tensor], ...]  # the input projections, each with its rows_UR
    norms: tuple[tuple[Any, nn.Linear], ...] = ()  # each an RMS norm over all outputs of an input projection
    vectors: tuple[tuple[Any, str, Tensor], ...] = ()  # parameters or buffers beside them: module, name and rows_UR

    @property
    def num_units(self) -> int:
        """The number of units."""
        return self.columns_UC.shape[0]

    @property
    def num_experts(self) -> int:
        """The number of MLPs that a router chooses from, each with the same number of units."""
        return 1

    @property
    def is_mixture(self) -> bool:
        """Whether a router chooses among experts, of which there may be one; each has its own output bias."""
        return False

    @property
    def chosen_experts(self) -> int:
        """The number of MLPs that a token is sent to."""
        return 1

    @property
    def whole_experts(self) -> bool:
        """Whether the units are whole experts, and not neurons of which every expert keeps the same number."""
        return False

    @property
    def watched(self) -> nn.Module:
        """The module at which calibration puts its hook; `activations` reads the arguments of its forward."""
        return cast(nn.Module, getattr(self.output, "module", self.output))

    def activations(self, args: tuple[Any, ...]) -> Sequence[Tensor]:
        """Return the inputs of the output projection (…, C), one tensor an expert, from the arguments of `watched`."""
        return [args[0]]

    def num_tokens(self, args: tuple[Any, ...]) -> int | None:
        """Return the number of tokens, those that are not in `activations` counting as zeros; None: there are none."""
        return None

    @property
    def num_parameters(self) -> int:
        """The number of prunable parameters, counted from the tensors; the output's own bias is never removed."""
        inputs: list[Any] = [linear for linear, _ in self.inputs]
        biases = sum(linear.bias.numel() for linear in inputs if linear.bias is not None)
        weights: list[Tensor] = [module.weight for module in (self.output, *inputs, *(norm for norm, _ in self.norms))]
        weights += [getattr(module, name) for module, name, _ in self.vectors if name in module._parameters]
        return int(biases + sum(weight.numel() for weight in weights))

    @property
    def unit_price(self) -> int:
        """The number of parameters that are removed with one unit."""
        return self.num_parameters // max(self.num_units, 1)


@dataclass
class DecoderOutput(MoeModelOutputWithPast):
    """The output of any decoder, with all fields that a model may look for."""

    cross_attentions: None = None
    shared_kv_states: None = None


class ModelAdapter(ABC):
    """The base class of the adapters. Layers are counted from 0.

    A subclass says which Linear modules have which role. whole_experts: the units of experts are whole experts.
    """

    def __init__(self, model: PreTrainedModel, whole_experts: bool = False) -> None:
        self.model, self.whole_experts = model, whole_experts

    @property
    def base(self) -> PreTrainedModel:
        """The model without its head; Llama 4's class with a head does not name it as its base model."""
        base = self.model.base_model
        return cast(PreTrainedModel, self.model.model if base is self.model else base)

    @property
    @abstractmethod
    def decoder(self) -> PreTrainedModel:
        """The model without its LM head. Calibration runs it."""

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the language model: in a vision-language model a part of its config, else the model's own."""
        return self.model.config.get_text_config()

    @property
    def vocab_size(self) -> int:
        """The number of logits of a token."""
        return int(self.config.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of final hidden states (…, D).

        This runs the forward pass of the model itself without its decoder, as families cap or scale their logits.
        """
        output = DecoderOutput(last_hidden_state=hidden.reshape(1, -1, hidden.shape[-1]))
        any_token = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
        with forwards_replaced([self.decoder], lambda *args, **options: output):
            logits: Tensor = self.model(input_ids=any_token, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1)

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""

    @abstractmethod
    def layer_output(self, hidden: Tensor) -> Any:
        """Return hidden states in the form in which a layer returns them."""

    @abstractmethod
    def attention(self, layer: int) -> Block:
        """Return the attention of a layer; its units are KV heads with their query heads."""

    @abstractmethod
    def mlp(self, layer: int) -> Block:
        """Return the MLP of a layer; its units are neurons."""

    @abstractmethod
    def queries_per_group(self, layer: int) -> int:
        """Return the number of query heads that share one KV head; 1 under multi-head attention."""

    @abstractmethod
    def widths(self, layer: int) -> dict[str, int]:
        """Return the numbers of heads and neurons of a layer, by the names that they have in the family's config."""

    @abstractmethod
    def refresh(self, layer: int) -> None:
        """Update the module attributes that hold a width (such as a number of heads) after the tensors have changed."""

    @property
    @abstractmethod
    def head_dim(self) -> int | None:
        """The number of channels of one head in all layers; None if no layer has heads to prune, or layers differ."""

    def layer_config(self, layer: int) -> dict[str, int | bool]:
        """Return the layer's values of the config keys that pruning changes: `per_layer_config` of a checkpoint."""
        attention, mlp = self.blocks(layer)
        has_bias = {"attention_output_bias": attention.output, "mlp_output_bias": mlp.output}
        return self.widths(layer) | {name: output.bias is not None for name, output in has_bias.items()}

    def blocks(self, layer: int) -> Pair[Block]:
        """Return the attention and the MLP of a layer."""
        return Pair(self.attention(layer), self.mlp(layer))

    def num_parameters(self) -> int:
        """Return the number of prunable parameters of all decoder layers: the denominator of the ratio."""
        return sum(block.num_parameters for i in range(len(self.layers)) for block in self.blocks(i))


def split(channels: int, units: int) -> Tensor:
    """Return the indices 0 … channels - 1 as (units, channels / units): each unit owns consecutive channels."""
    return torch.arange(channels).reshape(units, channels // max(units, 1))
