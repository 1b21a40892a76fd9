"""Access attentions, MLPs and other parts of decoder-only models in the same way for all families.

A family is a set of architectures in which these parts have the same names. The table in
`flap.modeling.families` has a row with these names for each family. An attention or MLP is
represented by a `Block`, which consists of units, such as heads or neurons. Pruning keeps or
removes each unit as a whole.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from flap.modeling.families import Family
from flap.models.block import Block, NoBlock, Pair, as_linear, refresh_conv1d, split
from flap.runtime.temporary_state import forwards_replaced

# Names of the attributes in which attention modules store their numbers of heads.
QUERY_HEADS = ("num_heads", "num_attention_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")


@dataclass
class DecoderOutput(MoeModelOutputWithPast):
    """A decoder's output, with all fields that a model's forward pass may read."""

    cross_attentions: None = None
    shared_kv_states: None = None


class ModelAdapter:
    """Gives access to the attentions, MLPs and other parts of a model that has no experts.

    Layers are numbered from 0.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model = model
        self.family = family

    @property
    def base(self) -> PreTrainedModel:
        """The model without its LM head."""
        base = self.model.base_model
        # `base_model` of Llama4ForCausalLM is the model itself, so use the attribute `model`
        if base is self.model:
            base = self.model.model
        return cast(PreTrainedModel, base)

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the language model.

        In a vision-language model, this is the part `text_config` of the model's config.
        """
        return self.model.config.get_text_config()

    @property
    def vocab_size(self) -> int:
        """The number of logits at each position."""
        return int(self.config.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits for final hidden states (…, hidden size).

        The model's own forward pass is run, because some families cap or scale the logits after the
        LM head. In this pass, a function that returns the given states replaces the decoder.
        """
        output = DecoderOutput(last_hidden_state=hidden.reshape(1, -1, hidden.shape[-1]))
        any_token = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)

        def return_output(*args: Any, **options: Any) -> DecoderOutput:
            return output

        with forwards_replaced([self.decoder], return_output):
            logits: Tensor = self.model(input_ids=any_token, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1)

    @property
    def decoder(self) -> PreTrainedModel:
        """The decoder, which is the language model without its LM head."""
        return cast(PreTrainedModel, self.base.get_submodule(self.family.decoder))

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.decoder.get_submodule(self.family.layers))

    def layer_output(self, hidden: Tensor) -> Any:
        """Return hidden states in the format in which a layer of this family returns them."""
        return (hidden,) if self.family.tuples else hidden

    def parent(self, layer: int, path: str) -> Any:
        """Return the module that contains the projection at `path` in a layer."""
        return self.layers[layer].get_submodule(path.rpartition(".")[0])

    def attention(self, layer: int) -> Block:
        """Return a layer's attention as a block. A unit is a KV head with its query heads.

        An attention that cannot be divided into heads is a single unit, which always stays.
        """
        name = f"layer {layer} attention"
        family = self.family
        if not self._has_prunable_heads(layer):
            whole = family.whole_attention or family.attention
            if not self._has(layer, whole):
                return NoBlock.of(name, self.layers[layer])
            output = self.layers[layer].get_submodule(whole)
            return Block(name, output, split(cast(Any, output).in_features, 1), ())

        module = self.parent(layer, family.attention)
        output, inputs = _linears(module, family.attention, family.attention_inputs)
        queries = output.in_features
        is_fused = len(inputs) == 1
        keys = (inputs[0].out_features - queries) // 2 if is_fused else inputs[1].out_features
        groups = keys // self._head_dim(layer)

        if family.stacked:
            rows = [_rows([queries, keys, keys], groups)]
        else:
            rows = [_rows([linear.out_features], groups) for linear in inputs]
        norms = [
            (module.get_submodule(path), inputs[i]) for i, path in enumerate(family.attention_norms)
        ]
        vectors = [
            (module, path, split(getattr(module, path).numel(), groups))
            for path in family.attention_vectors
        ]
        return Block(
            name,
            output,
            columns_UC=split(queries, groups),
            inputs=tuple(zip(inputs, rows, strict=True)),
            norms=tuple(norms),
            vectors=tuple(vectors),
        )

    @property
    def reads_tokens(self) -> bool:
        """Whether layers get information about the tokens in addition to the hidden states.

        In Gemma 4, layers may get separate embeddings of the tokens, or read the keys of earlier
        layers.
        """
        keys = ("hidden_size_per_layer_input", "num_kv_shared_layers")
        return any(getattr(self.config, key, 0) for key in keys)

    def _shares_kv(self, layer: int) -> bool:
        shared = getattr(self.config, "num_kv_shared_layers", 0)
        return bool(shared) and self.config.kv_sharing_modes[layer] is not None

    def _has_prunable_heads(self, layer: int) -> bool:
        if self._shares_kv(layer):
            return False
        whole = self.family.whole_attention
        if not whole:
            return True
        return self._has(layer, self.family.attention) and not self._has(layer, whole)

    def _has(self, layer: int, path: str) -> bool:
        return path in dict(self.layers[layer].named_modules())

    def mlp(self, layer: int) -> Block:
        """Return a layer's MLP as a block, whose units are neurons.

        If the layer has no MLP, the block is empty.
        """
        name = f"layer {layer} MLP"
        if not self._has(layer, self.family.mlp):
            return NoBlock.of(name, self.layers[layer])
        module = self.parent(layer, self.family.mlp)
        output, inputs = _linears(module, self.family.mlp, self.family.mlp_inputs)
        neurons = output.in_features
        rows = [_rows([neurons] * (linear.out_features // neurons), neurons) for linear in inputs]
        return Block(name, output, split(neurons, neurons), tuple(zip(inputs, rows, strict=True)))

    def own_config(self) -> None:
        """Replace the config by a copy, in the model and in all modules that refer to the config.

        Later changes to the copy do not affect other models that use the original config.
        """
        before = self.model.config
        config = copy.deepcopy(before)
        copies = {id(before): config}
        for name in before.sub_configs:
            copies[id(getattr(before, name))] = getattr(config, name)
        for module in self.model.modules():
            # If the model lacks a part, such as a vision tower, `copies` maps None to None, so a
            # module without a config stays without a config.
            if hasattr(module, "config") and id(module.config) in copies:
                module.config = copies[id(module.config)]

    def queries_per_group(self, layer: int) -> int:
        """Return the number of query heads that share a KV head.

        Return 1 for multi-head attention, and for an attention that cannot be divided into heads.
        """
        if not self._has_prunable_heads(layer):
            return 1
        return int(self.attention(layer).columns_UC.shape[1] // self._head_dim(layer))

    def _head_dim(self, layer: int) -> int:
        attention = self.parent(layer, self.family.attention)
        return int(getattr(attention, "head_dim", None) or attention.head_size)

    @property
    def head_dim(self) -> int | None:
        """The number of channels of a head; None if it differs by layer or no layer has heads."""
        layers = range(len(self.layers))
        dims = {
            self._head_dim(i) for i in layers if self._has_prunable_heads(i) or self._shares_kv(i)
        }
        return dims.pop() if len(dims) == 1 else None

    def widths(self, layer: int) -> dict[str, int]:
        """Return a layer's numbers of heads and neurons, as a dict from config keys to numbers.

        If heads have different numbers of channels in different layers, the dict also contains the
        number of channels of each head of this layer.
        """
        attention, mlp = self.blocks(layer)
        widths: dict[str, int] = {}
        if self._has(layer, self.family.mlp):
            widths[self.family.neurons] = mlp.num_units
        if self._has_prunable_heads(layer):
            if self.head_dim is None:
                widths["head_dim"] = self._head_dim(layer)
            widths["num_attention_heads"] = attention.num_units * self.queries_per_group(layer)
            if hasattr(self.config.per_layer_config[layer], self.family.kv_heads):
                widths[self.family.kv_heads] = attention.num_units
        elif self._shares_kv(layer):
            module = self.parent(layer, self.family.attention)
            heads = int(self.config.num_attention_heads)
            widths["num_attention_heads"] = heads
            widths[self.family.kv_heads] = heads // module.num_key_value_groups
            if self.head_dim is None:
                widths["head_dim"] = self._head_dim(layer)
        return widths

    def refresh(self, layer: int) -> None:
        """Set attributes of a layer's modules, such as `num_heads`, to match its tensors.

        This is needed after rows or columns of the tensors were removed.
        """
        refresh_conv1d(self.layers[layer])
        self.refresh_mlp(layer)
        if self._has_prunable_heads(layer):
            self._refresh_attention(layer)

    def _refresh_attention(self, layer: int) -> None:
        module = self.parent(layer, self.family.attention)
        block = self.attention(layer)
        heads = block.num_units * self.queries_per_group(layer)
        _set_existing(module, dict.fromkeys(QUERY_HEADS, heads))
        _set_existing(module, dict.fromkeys(KV_HEADS, block.num_units))
        _set_existing(module, {"split_size": block.output.in_features})
        if self.family.stacked:
            # The forward pass of Phi-3 computes the number of query rows from the config. So each
            # attention gets a copy of the config with its own number of heads.
            module.config = copy.copy(module.config)
            module.config.num_attention_heads = heads

    def refresh_mlp(self, layer: int) -> None:
        if self._has(layer, self.family.mlp):
            module = self.parent(layer, self.family.mlp)
            _set_existing(module, {"intermediate_size": self.mlp(layer).num_units})

    def layer_config(self, layer: int) -> dict[str, int | bool]:
        """Return a layer's entry in `per_layer_config`, a config key of pruned models.

        `modeling_flap.py` builds each layer from this entry.
        """
        attention, mlp = self.blocks(layer)
        return {
            **self.widths(layer),
            "attention_output_bias": attention.output.bias is not None,
            "mlp_output_bias": mlp.output.bias is not None,
        }

    def blocks(self, layer: int) -> Pair[Block]:
        return Pair(self.attention(layer), self.mlp(layer))

    @property
    def idle_parameters(self) -> int:
        """The number of parameters in experts that a token does not use, summed over all layers."""
        return sum(self.mlp(i).idle for i in range(len(self.layers)))

    def num_parameters(self) -> int:
        """Return the number of prunable parameters in all layers.

        The pruning ratio is relative to this number.
        """
        pairs = map(self.blocks, range(len(self.layers)))
        return sum(pair.attention.num_parameters + pair.mlp.num_parameters for pair in pairs)


def _linears(module: nn.Module, output: str, inputs: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return the output projection and the input projections of a module.

    Missing input projections are left out, because Gemma 4 has attentions without a value
    projection.
    """
    name = output.rpartition(".")[2]
    projections = [
        as_linear(module.get_submodule(path))
        for path in inputs
        if getattr(module, path) is not None
    ]
    return as_linear(module.get_submodule(name)), projections


def _rows(sizes: Sequence[int], units: int) -> Tensor:
    """Return the indices of each unit's rows in the weight of a Linear.

    sizes: the number of rows of each projection that is stacked in the Linear.
    units: the number of units. Each unit has the same number of consecutive rows in a projection.
    """
    rows = []
    start = 0
    for size in sizes:
        rows.append(start + split(size, units))
        start += size
    return torch.cat(rows, dim=1)


def _set_existing(module: nn.Module, values: dict[str, int]) -> None:
    for name, value in values.items():
        if hasattr(module, name):
            setattr(module, name, value)
