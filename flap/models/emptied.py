"""Attention without heads, which no architecture can run: its output is the bias of its output projection, or zero."""

from typing import Any, cast

from torch import Tensor, nn
from transformers import Cache

from flap.models.adapter import Block, ModelAdapter


class EmptyAttention:
    """The forward pass of an attention module whose heads were all removed, mixed into the module's class.

    The cache gets a key and a value of one zero for each token: caches count tokens by the keys of their first layer.
    """

    output_name: str
    layer_idx: int

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Return the output projection of no channels."""
        for cache in (value for value in kwargs.values() if isinstance(value, Cache)):
            zero = hidden_states.new_zeros(*hidden_states.shape[:-1], 1)[:, None]
            cache.update(zero, zero, self.layer_idx)
        output: Tensor = getattr(self, self.output_name)(hidden_states[..., :0])
        return output, None


def may_lose_all_heads(attention: Block) -> bool:
    """Return whether an attention runs without heads: it has heads, and its heads share nothing but the projections."""
    plain = bool(attention.inputs) and isinstance(attention.output, nn.Linear)
    return plain and not attention.norms and not attention.vectors


def run_empty_attention(adapter: ModelAdapter, layer: int) -> None:
    """Let the attention of a layer run without heads, if it has none."""
    block = adapter.attention(layer)
    if block.num_units:
        return
    for module in adapter.layers[layer].modules():
        names = [name for name, child in module.named_children() if child is block.output]
        if names and not isinstance(module, EmptyAttention):
            mixed = type(type(module).__name__, (EmptyAttention, type(module)), {"output_name": names[0]})
            cast(Any, module).__class__ = mixed
