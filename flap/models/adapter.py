"""The adapter of a decoder-only model: it gives the parts of the model by role, whatever the modules are called.

The names of a family's modules are a row of the table in `flap.modeling.families`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from flap.data.temporary_state import forwards_replaced
from flap.modeling.families import Family
from flap.models.block import Block, NoBlock, Pair, as_linear, refresh_conv1d, split

QUERY_HEADS = ("num_heads", "num_attention_heads")  # attributes of attention modules
KV_HEADS = ("num_key_value_heads", "num_kv_heads")


@dataclass
class DecoderOutput(MoeModelOutputWithPast):
    """The output of any decoder, with all fields that a model may look for."""

    cross_attentions: None = None
    shared_kv_states: None = None


class ModelAdapter:
    """The adapter of the families whose modules differ in no more than their names. Layers are counted from 0."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model = model
        self.family = family
        self.counted_P: Tensor | None = (
            None  # which positions of the batch that runs count; None: all
        )

    @property
    def base(self) -> PreTrainedModel:
        """The model without its head; Llama 4's class with a head does not name it as its base model."""
        base = self.model.base_model
        return cast(PreTrainedModel, self.model.model if base is self.model else base)

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
    def decoder(self) -> PreTrainedModel:
        """The model without its LM head."""
        return cast(PreTrainedModel, self.base.get_submodule(self.family.decoder))

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.decoder.get_submodule(self.family.layers))

    def layer_output(self, hidden: Tensor) -> Any:
        """Return hidden states in the form in which a layer returns them."""
        return (hidden,) if self.family.tuples else hidden

    def parent(self, layer: int, path: str) -> Any:
        """Return the module of a layer that holds the projection at `path`."""
        return self.layers[layer].get_submodule(path.rpartition(".")[0])

    def attention(self, layer: int) -> Block:
        """Return the attention of a layer; its units are KV heads with their query heads.

        An attention that cannot be divided is one unit, and as a layer keeps at least one, it stays.
        """
        name = f"layer {layer} attention"
        family = self.family
        if not self._has_heads(layer):
            whole = family.whole_attention or family.attention
            if not self._has(layer, whole):
                return NoBlock.of(name, self.layers[layer])
            output = self.layers[layer].get_submodule(whole)
            return Block(name, output, split(cast(Any, output).in_features, 1), ())
        module = self.parent(layer, family.attention)
        output, inputs = _linears(module, family.attention, family.attention_inputs)
        queries = output.in_features
        keys = (
            inputs[1].out_features if len(inputs) > 1 else (inputs[0].out_features - queries) // 2
        )
        groups = keys // self._head_dim(layer)
        sizes = (
            [[queries, keys, keys]]
            if family.stacked
            else [[linear.out_features] for linear in inputs]
        )
        rows = [_rows(parts, groups) for parts in sizes]
        norms = tuple(
            (module.get_submodule(one), inputs[i]) for i, one in enumerate(family.attention_norms)
        )
        vectors = tuple(
            (module, one, split(getattr(module, one).numel(), groups))
            for one in family.attention_vectors
        )
        return Block(
            name,
            output,
            split(queries, groups),
            tuple(zip(inputs, rows, strict=True)),
            norms,
            vectors,
        )

    @property
    def reads_tokens(self) -> bool:
        """Whether layers get more than hidden states: embeddings of their own (Gemma 4), or keys of earlier ones."""
        return any(
            getattr(self.config, key, 0)
            for key in ("hidden_size_per_layer_input", "num_kv_shared_layers")
        )

    def _shares_keys(self, layer: int) -> bool:
        """Whether a layer reads the keys and values of another one, or another reads those of it."""
        shared = getattr(self.config, "num_kv_shared_layers", 0)
        return bool(shared) and self.config.kv_sharing_modes[layer] is not None

    def _has_heads(self, layer: int) -> bool:
        whole = self.family.whole_attention
        if self._shares_keys(layer):
            return False
        return not whole or (
            self._has(layer, self.family.attention) and not self._has(layer, whole)
        )

    def _has(self, layer: int, path: str) -> bool:
        return path in dict(self.layers[layer].named_modules())

    def mlp(self, layer: int) -> Block:
        """Return the MLP of a layer; its units are neurons."""
        if not self._has(layer, self.family.mlp):
            return NoBlock.of(f"layer {layer} MLP", self.layers[layer])
        module = self.parent(layer, self.family.mlp)
        output, inputs = _linears(module, self.family.mlp, self.family.mlp_inputs)
        neurons = output.in_features
        rows = [_rows([neurons] * (linear.out_features // neurons), neurons) for linear in inputs]
        return Block(
            f"layer {layer} MLP",
            output,
            split(neurons, neurons),
            tuple(zip(inputs, rows, strict=True)),
        )

    def own_config(self) -> None:
        """Give the model a config that no other model has, before values of it are set."""
        before = self.model.config
        config = copy.deepcopy(before)
        own = {id(before): config} | {
            id(getattr(before, name)): getattr(config, name) for name in before.sub_configs
        }
        for module in self.model.modules():
            if (
                hasattr(module, "config") and id(module.config) in own
            ):  # a part that a model lacks has None
                module.config = own[id(module.config)]

    def queries_per_group(self, layer: int) -> int:
        """Return the number of query heads that share one KV head; 1 under multi-head attention."""
        if not self._has_heads(layer):
            return 1
        return int(self.attention(layer).columns_UC.shape[1] // self._head_dim(layer))

    def _head_dim(self, layer: int) -> int:
        attention = self.parent(layer, self.family.attention)
        return int(getattr(attention, "head_dim", None) or attention.head_size)

    @property
    def head_dim(self) -> int | None:
        """The number of channels of one head in all layers; None if no layer has heads to prune, or layers differ."""
        layers = range(len(self.layers))
        dims = {self._head_dim(i) for i in layers if self._has_heads(i) or self._shares_keys(i)}
        return dims.pop() if len(dims) == 1 else None

    def widths(self, layer: int) -> dict[str, int]:
        """Return the numbers of heads and neurons of a layer, by their names in the config."""
        attention, mlp = self.blocks(layer)
        widths = {self.family.neurons: mlp.num_units} if self._has(layer, self.family.mlp) else {}
        if self._has_heads(layer):
            if self.head_dim is None:
                widths["head_dim"] = self._head_dim(layer)
            widths["num_attention_heads"] = attention.num_units * self.queries_per_group(layer)
            if hasattr(self.config.per_layer_config[layer], self.family.kv_heads):
                widths[self.family.kv_heads] = attention.num_units
        elif self._shares_keys(layer):
            module = self.parent(layer, self.family.attention)
            heads = int(self.config.num_attention_heads)
            widths |= {
                "num_attention_heads": heads,
                self.family.kv_heads: heads // module.num_key_value_groups,
            }
            widths |= {} if self.head_dim else {"head_dim": self._head_dim(layer)}
        return widths

    def refresh(self, layer: int) -> None:
        """Update whatever holds a width in the modules of the layer."""
        refresh_conv1d(self.layers[layer])
        self.refresh_mlp(layer)
        if self._has_heads(layer):
            self._refresh_attention(layer)

    def _refresh_attention(self, layer: int) -> None:
        module = self.parent(layer, self.family.attention)
        block = self.attention(layer)
        heads = block.num_units * self.queries_per_group(layer)
        _update(module, dict.fromkeys(QUERY_HEADS, heads))
        _update(
            module,
            dict.fromkeys(KV_HEADS, block.num_units) | {"split_size": block.output.in_features},
        )
        if (
            self.family.stacked
        ):  # the forward pass may read from the config how many rows are queries
            module.config = copy.copy(module.config)
            module.config.num_attention_heads = heads

    def refresh_mlp(self, layer: int) -> None:
        if self._has(layer, self.family.mlp):
            _update(
                self.parent(layer, self.family.mlp),
                {"intermediate_size": self.mlp(layer).num_units},
            )

    def layer_config(self, layer: int) -> dict[str, int | bool]:
        """Return the layer's values of the config keys that pruning changes: `per_layer_config` of a checkpoint."""
        attention, mlp = self.blocks(layer)
        has_bias = {"attention_output_bias": attention.output, "mlp_output_bias": mlp.output}
        return self.widths(layer) | {
            name: output.bias is not None for name, output in has_bias.items()
        }

    def blocks(self, layer: int) -> Pair[Block]:
        return Pair(self.attention(layer), self.mlp(layer))

    @property
    def idle_parameters(self) -> int:
        """The number of parameters of the experts that a token is not sent to; 0 without experts."""
        return sum(self.mlp(i).idle for i in range(len(self.layers)))

    def num_parameters(self) -> int:
        """Return the number of prunable parameters of all decoder layers: the denominator of the ratio."""
        return sum(
            block.num_parameters for i in range(len(self.layers)) for block in self.blocks(i)
        )


def _linears(module: nn.Module, output: str, inputs: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return the output projection and the input projections of a module; Gemma 4 may have no value projection."""
    name = output.rpartition(".")[2]
    beside = [
        as_linear(module.get_submodule(one)) for one in inputs if getattr(module, one) is not None
    ]
    return as_linear(module.get_submodule(name)), beside


def _rows(sizes: Sequence[int], units: int) -> Tensor:
    """Return rows_UR of a Linear with the rows of projections of these sizes, one projection after the other."""
    starts = accumulate(sizes, initial=0)
    return torch.cat(
        [start + split(size, units) for start, size in zip(starts, sizes, strict=False)], dim=1
    )


def _update(module: nn.Module, values: dict[str, int]) -> None:
    for name, value in values.items():
        if hasattr(module, name):
            setattr(module, name, value)
