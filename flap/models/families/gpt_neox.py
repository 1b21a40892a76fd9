"""GPT-NeoX and Pythia: one Linear with q, k and v of each head, head after head; a plain MLP; biases."""

from typing import Any, cast

from flap.models.adapter import Block, ModelAdapter, split


class GPTNeoXAdapter(ModelAdapter):
    """The adapter of GPT-NeoX and Pythia."""

    model_types = ("gpt_neox",)

    def attention(self, layer: int) -> Block:
        """Return the attention of a layer; its units are heads."""
        module = cast(Any, self.layers[layer]).attention
        heads = module.dense.in_features // module.head_size
        rows_UR = split(module.query_key_value.out_features, heads)
        columns_UC = split(module.dense.in_features, heads)
        return Block(f"layer {layer} attention", module.dense, columns_UC, ((module.query_key_value, rows_UR),))

    def mlp(self, layer: int) -> Block:
        """Return the MLP of a layer; its units are neurons."""
        module = cast(Any, self.layers[layer]).mlp
        output = module.dense_4h_to_h
        neurons = split(output.in_features, output.in_features)
        return Block(f"layer {layer} MLP", output, neurons, ((module.dense_h_to_4h, neurons),))

    def queries_per_group(self, layer: int) -> int:
        """Return 1: it has multi-head attention."""
        return 1

    def widths(self, layer: int) -> dict[str, int]:
        """Return the numbers of heads and neurons of a layer, by their names in the config."""
        attention, mlp = self.blocks(layer)
        return {"num_attention_heads": attention.num_units, "intermediate_size": mlp.num_units}

    def refresh(self, layer: int) -> None:
        """Do nothing: the modules hold no width; the number of heads follows from the number of channels."""
