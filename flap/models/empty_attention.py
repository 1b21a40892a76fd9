"""Attention without heads, which no architecture can run: its output is the bias of its output projection, or zero."""

from typing import Any, cast

from torch import nn

from flap.modeling.modeling_flap import EmptyAttentionMixin
from flap.models.adapter import ModelAdapter
from flap.models.block import Block


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
        if names and not isinstance(module, EmptyAttentionMixin):
            mixed = type(type(module).__name__, (EmptyAttentionMixin, type(module)), {"output_name": names[0]})
            cast(Any, module).__class__ = mixed
