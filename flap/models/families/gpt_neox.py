"""GPT-NeoX and Pythia: q, k and v of one head after another in one Linear, a plain MLP, biases."""

from typing import Any, cast

from flap.models.adapter import Block, ModelAdapter, split


class GPTNeoXAdapter(ModelAdapter):
    model_types = ("gpt_neox",)

    def attention(self, layer: int) -> Block:
        module = cast(Any, self.layers[layer]).attention
        heads = module.dense.in_features // module.head_size
        rows_UR = split(module.query_key_value.out_features, heads)
        columns_UC = split(module.dense.in_features, heads)
        return Block(f"layer {layer} attention", module.dense, columns_UC, ((module.query_key_value, rows_UR),))

    def mlp(self, layer: int) -> Block:
        module = cast(Any, self.layers[layer]).mlp
        output = module.dense_4h_to_h
        neurons = split(output.in_features, output.in_features)
        return Block(f"layer {layer} MLP", output, neurons, ((module.dense_h_to_4h, neurons),))

    def queries_per_group(self, layer: int) -> int:
        return 1

    def widths(self, layer: int) -> dict[str, int]:
        attention, mlp = self.blocks(layer)
        return {"num_attention_heads": attention.num_units, "intermediate_size": mlp.num_units}

    def refresh(self, layer: int) -> None:
        """Its modules repeat no width: the number of heads follows from that of the channels."""
