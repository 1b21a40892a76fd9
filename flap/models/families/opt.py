"""OPT: separate q, k, v and out; a plain MLP whose Linears belong to the layer itself; biases everywhere."""

from typing import Any, cast

from torch import nn

from flap.models.adapter import Block, ModelAdapter, split


class OPTAdapter(ModelAdapter):
    """The adapter of OPT."""

    model_types = ("opt",)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the decoder inside the decoder."""
        return cast(nn.ModuleList, cast(Any, self.decoder).decoder.layers)

    def attention(self, layer: int) -> Block:
        """Return the attention of a layer; its units are heads."""
        module = cast(Any, self.layers[layer]).self_attn
        rows_UR = split(module.out_proj.in_features, module.out_proj.in_features // module.head_dim)
        inputs = tuple((linear, rows_UR) for linear in (module.q_proj, module.k_proj, module.v_proj))
        return Block(f"layer {layer} attention", module.out_proj, rows_UR, inputs)

    def mlp(self, layer: int) -> Block:
        """Return the MLP of a layer; its units are neurons."""
        module = cast(Any, self.layers[layer])
        neurons = split(module.fc2.in_features, module.fc2.in_features)
        return Block(f"layer {layer} MLP", module.fc2, neurons, ((module.fc1, neurons),))

    def queries_per_group(self, layer: int) -> int:
        """Return 1: it has multi-head attention."""
        return 1

    def widths(self, layer: int) -> dict[str, int]:
        """Return the numbers of heads and neurons of a layer, by their names in the config."""
        attention, mlp = self.blocks(layer)
        return {"num_attention_heads": attention.num_units, "ffn_dim": mlp.num_units}

    def refresh(self, layer: int) -> None:
        """Update the number of heads of the attention module."""
        module = cast(Any, self.layers[layer]).self_attn
        module.num_heads = module.out_proj.in_features // module.head_dim
