"""Phi-3: one Linear holds q, k and v, another one gate and up."""

import copy

import torch

from flap.models.adapter import Block, split
from flap.models.families.llama import LlamaAdapter


class Phi3Adapter(LlamaAdapter):
    """The adapter of Phi-3."""

    model_types = ("phi3",)

    def attention(self, layer: int) -> Block:
        """Return the attention of a layer; its units are KV heads with their query heads."""
        module, _ = self._modules(layer)
        queries, fused = module.o_proj.in_features, module.qkv_proj.out_features
        keys = (fused - queries) // 2
        groups = keys // module.head_dim
        columns_UC, k_rows_UR = split(queries, groups), queries + split(keys, groups)
        rows_UR = torch.cat([columns_UC, k_rows_UR, keys + k_rows_UR], dim=1)
        return Block(f"layer {layer} attention", module.o_proj, columns_UC, ((module.qkv_proj, rows_UR),))

    def mlp(self, layer: int) -> Block:
        """Return the MLP of a layer; its units are neurons."""
        _, module = self._modules(layer)
        num_neurons = module.down_proj.in_features
        neurons = split(num_neurons, num_neurons)
        rows_UR = torch.cat([neurons, num_neurons + neurons], dim=1)
        return Block(f"layer {layer} MLP", module.down_proj, neurons, ((module.gate_up_proj, rows_UR),))

    def queries_per_group(self, layer: int) -> int:
        """Return the number of query heads that share one KV head."""
        module, _ = self._modules(layer)
        return self.attention(layer).columns_UC.shape[1] // int(module.head_dim)

    def refresh(self, layer: int) -> None:
        """Update the number of KV heads, and the number of heads in the attention module's own config."""
        module, _ = self._modules(layer)
        attention = self.attention(layer)
        module.num_key_value_heads = attention.num_units
        # the forward pass reads from the config how many rows are queries
        module.config = copy.copy(module.config)
        module.config.num_attention_heads = attention.num_units * self.queries_per_group(layer)
