"""Bounds from the targets of a config that shapes alone decide: parameters, bytes, the KV cache, memory.

Legend: K kept units of a block, from 0 to all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from flap.config import TargetConfig, require, targets
from flap.method.allocation.budget import Bound, Units
from flap.models import Block, ModelAdapter, Pair
from flap.models.block import bias_of

Layers = Sequence[Pair[Units]]
CACHES = ("kv_cache_bytes", "memory")  # targets that count keys and values


@dataclass(frozen=True)
class Biases:
    """The biases that a pruned model has beyond the dense one."""

    outputs: bool  # compensation gives one to the output projection of a block that loses units
    inputs: bool = False  # the stock form of the checkpoint then has them in the input projections, too, as zeros


def bounds_of_shapes(
    target: TargetConfig,
    adapter: ModelAdapter,
    layers: Layers,
    itemsize: int,
    biases: Biases,
    max_length: int | None,
) -> tuple[Bound, ...]:
    """Return the bounds of a model that its shapes decide.

    layers: its units. itemsize: bytes of a weight, and of a key or value. biases: those that pruning adds. max_length:
    the longest context of the model, in tokens.

    Raises:
        ValueError: the KV cache cannot be counted: no context is known, or attention has no heads.
    """
    bounds = []
    context = target.context or max_length
    for name, asked in targets(target).items():
        caches: tuple[Pair[Tensor], ...] = ()
        if name in CACHES:
            allowed = "a number of tokens, as this model states no context length"
            require(context is not None, "target.context", context, allowed)
            assert context is not None
            tokens = itemsize * (target.sequences if name == "memory" else 1)
            caches = _kv_costs(name, adapter, layers, context, tokens)
        if name == "kv_cache_bytes":
            bounds.append(Bound(name, asked, 0, caches))
            continue
        size = itemsize if name in ("bytes", "memory") else 1
        bound = _of_weights(name, asked, size, adapter, layers, biases)
        costs = (
            tuple(Pair(*map(torch.add, *both)) for both in zip(bound.costs, caches, strict=True))
            if caches
            else ()
        )
        bounds.append(replace(bound, costs=costs or bound.costs, beside=caches))
    return tuple(bounds)


def _of_weights(
    name: str, asked: float, size: int, adapter: ModelAdapter, layers: Layers, biases: Biases
) -> Bound:
    """Return a bound on the parameters of the model, each of which costs `size`: on all of them, or the active ones.

    The neurons of an expert are active for the share of experts that a token is sent to; whole ones, as many as that.
    """
    active = name == "active_parameters"
    total = (
        sum(parameter.numel() for parameter in adapter.model.parameters())
        - active * adapter.idle_parameters
    )

    def cost(block: Block, units: Units) -> Tensor:
        kept_K = torch.arange(units.count + 1, dtype=torch.float64)
        cost_K = units.price * kept_K
        members = len(block.members)
        if biases.outputs and block.output.bias is None and not block.whole:
            cost_K[:-1] += members * block.output.weight.shape[0]
        if biases.inputs:
            rows = sum(
                rows_UR.shape[1] for linear, rows_UR in block.inputs if bias_of(linear) is None
            )
            cost_K[:-1] += rows * kept_K[:-1]
        if active and block.whole:
            cost_K -= (
                block.idle
                / max(members - block.num_chosen, 1)
                * (kept_K - block.num_chosen).clamp(min=0)
            )
        elif active:
            cost_K *= block.num_chosen / members
        return size * cost_K

    pairs = ((adapter.blocks(i), layer) for i, layer in enumerate(layers))
    costs = tuple(
        Pair(*(cost(*one) for one in zip(blocks, layer, strict=True))) for blocks, layer in pairs
    )
    fixed = size * total - sum(float(cost_K[-1]) for pair in costs for cost_K in pair)
    return Bound(name, asked, fixed, costs, size)


def _kv_costs(
    name: str, adapter: ModelAdapter, layers: Layers, context: int, itemsize: int
) -> tuple[Pair[Tensor], ...]:
    """Return the bytes of the keys and values of each layer; a sliding layer keeps those of its window.

    itemsize: of one value, times the number of sequences. name: of the target.

    Raises:
        ValueError: a layer has an attention without heads that can be pruned, as a state space.
    """
    blocks = [adapter.attention(i) for i in range(len(layers))]
    if not all(block.inputs for block in blocks):
        expected = "a model whose attention has heads that can be pruned, in all layers"
        raise ValueError(f"target.{name}: expected {expected}")
    caches = DynamicCache(config=adapter.model.config).layers
    windows = [getattr(cache, "sliding_window", None) or context + 1 for cache in caches]

    # a Falcon with groups copies keys and values for all query heads before it keeps them
    copied = getattr(adapter.config, "new_decoder_architecture", False)

    def cost(block: Block, layer: Pair[Units], window: int) -> Pair[Tensor]:
        channels = block.columns_UC.shape[1] // (1 if copied else layer.attention.queries)
        channels_K = channels * torch.arange(layer.attention.count + 1, dtype=torch.float64)
        neurons_K = torch.zeros(layer.mlp.count + 1, dtype=torch.float64)
        return Pair(2 * itemsize * min(context, window - 1) * channels_K, neurons_K)

    return tuple(cost(*one) for one in zip(blocks, layers, windows, strict=True))
