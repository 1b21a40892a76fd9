"""Bounds from the targets of a config that shapes alone decide: parameters, bytes, and the KV cache.

Legend: K kept units of a block, from 0 to all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from flap.config import TargetConfig, require
from flap.method.allocation.budget import Bound, Units
from flap.models import Block, ModelAdapter, Pair

Layers = Sequence[Pair[Units]]


@dataclass(frozen=True)
class Biases:
    """The biases that a pruned model has beyond the dense one."""

    outputs: bool  # compensation gives one to the output projection of a block that loses units
    inputs: bool = False  # the stock form of the checkpoint then has them in the input projections, too, as zeros


def bounds_of_shapes(
    target: TargetConfig, adapter: ModelAdapter, layers: Layers, itemsize: int, biases: Biases, max_length: int | None
) -> tuple[Bound, ...]:
    """Return the bounds of a model that its shapes decide.

    layers: its units. itemsize: bytes of a weight, and of a key or value. biases: those that pruning adds. max_length:
    the longest context of the model, in tokens.

    Raises:
        ValueError: the KV cache cannot be counted: no context is known, or attention has no heads.
    """
    bounds = []
    for name, scale in (("parameters", 1), ("bytes", itemsize)):
        if (asked := getattr(target, name)) is not None:
            bounds.append(_of_weights(name, asked, scale, adapter, layers, biases))
    if (asked := target.kv_cache_bytes) is not None:
        context = target.context or max_length
        allowed = "a number of tokens, as this model states no context length"
        require(context is not None, "target.context", context, allowed)
        assert context is not None
        bounds.append(Bound("kv_cache_bytes", asked, 0, _kv_costs(adapter, layers, context, itemsize)))
    return tuple(bounds)


def _of_weights(name: str, asked: float, scale: int, adapter: ModelAdapter, layers: Layers, biases: Biases) -> Bound:
    """Return a bound on all parameters of the model, each of which costs `scale`."""
    total = sum(parameter.numel() for parameter in adapter.model.parameters())
    fixed = total - sum(units.total for layer in layers for units in layer)

    def cost(block: Block, units: Units) -> Tensor:
        kept_K = torch.arange(units.count + 1, dtype=torch.float64)
        cost_K = units.price * kept_K
        if biases.outputs and block.output.bias is None and not block.whole:
            cost_K[:-1] += len(block.members) * block.output.weight.shape[0]
        if biases.inputs:
            rows = sum(rows_UR.shape[1] for linear, rows_UR in block.inputs if linear.bias is None)
            cost_K[:-1] += rows * kept_K[:-1]
        return scale * cost_K

    pairs = ((adapter.blocks(i), layer) for i, layer in enumerate(layers))
    costs = tuple(Pair(*(cost(*one) for one in zip(blocks, layer, strict=True))) for blocks, layer in pairs)
    return Bound(name, asked, scale * fixed, costs)


def _kv_costs(adapter: ModelAdapter, layers: Layers, context: int, itemsize: int) -> tuple[Pair[Tensor], ...]:
    """Return the bytes of the keys and values of each layer; a sliding layer keeps those of its window.

    Raises:
        ValueError: a layer has an attention without heads that can be pruned, as a state space.
    """
    head_dim = adapter.head_dim
    if head_dim is None or not all(adapter.attention(i).inputs for i in range(len(layers))):
        expected = "a model whose attention has heads that can be pruned, in all layers"
        raise ValueError(f"target.kv_cache_bytes: expected {expected}")
    caches = DynamicCache(config=adapter.model.config).layers
    windows = [getattr(cache, "sliding_window", None) or context + 1 for cache in caches]

    # a Falcon with groups copies keys and values for all query heads before it keeps them
    copied = getattr(adapter.config, "new_decoder_architecture", False)

    def cost(layer: Pair[Units], window: int) -> Pair[Tensor]:
        channels = head_dim * (layer.attention.queries if copied else 1)
        channels_K = channels * torch.arange(layer.attention.count + 1, dtype=torch.float64)
        channels_K[0] = 1  # which attention without heads keeps (`EmptyAttentionMixin`)
        neurons_K = torch.zeros(layer.mlp.count + 1, dtype=torch.float64)
        return Pair(2 * itemsize * min(context, window - 1) * channels_K, neurons_K)

    return tuple(cost(*one) for one in zip(layers, windows, strict=True))
