"""LLaMA and the families that share its module names: separate q, k, v, o and a gated MLP."""

from typing import Any, ClassVar

from flap.models.adapter import Block, ModelAdapter, split


class LlamaAdapter(ModelAdapter):
    """The adapter of LLaMA and of the families with the same module names."""

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3", "smollm3")

    def _modules(self, layer: int) -> tuple[Any, Any]:
        decoder_layer: Any = self.layers[layer]
        return decoder_layer.self_attn, decoder_layer.mlp

    def attention(self, layer: int) -> Block:
        """Return the attention of a layer; its units are KV heads with their query heads."""
        module, _ = self._modules(layer)
        groups = module.k_proj.out_features // module.head_dim
        inputs = (module.q_proj, module.k_proj, module.v_proj)
        return Block(
            name=f"layer {layer} attention",
            output=module.o_proj,
            columns_UC=split(module.o_proj.in_features, groups),
            inputs=tuple((linear, split(linear.out_features, groups)) for linear in inputs),
        )

    def mlp(self, layer: int) -> Block:
        """Return the MLP of a layer; its units are neurons."""
        _, module = self._modules(layer)
        neurons = module.down_proj.in_features
        return Block(
            name=f"layer {layer} MLP",
            output=module.down_proj,
            columns_UC=split(neurons, neurons),
            inputs=tuple((linear, split(neurons, neurons)) for linear in (module.gate_proj, module.up_proj)),
        )

    def queries_per_group(self, layer: int) -> int:
        """Return the number of query heads that share one KV head."""
        module, _ = self._modules(layer)
        return int(module.q_proj.out_features // module.k_proj.out_features)

    def widths(self, layer: int) -> dict[str, int]:
        """Return the numbers of heads and neurons of a layer, by their names in the config."""
        attention, mlp = self.blocks(layer)
        return {
            "num_attention_heads": attention.num_units * self.queries_per_group(layer),
            "num_key_value_heads": attention.num_units,
            "intermediate_size": mlp.num_units,
        }

    def refresh(self, layer: int) -> None:
        """Update the width of the MLP module."""
        _, mlp = self._modules(layer)
        mlp.intermediate_size = mlp.down_proj.in_features
