"""Compute bounds from the targets of a config, such as parameters, bytes, KV cache and memory.

A target is an option of the config section `target`, such as `target.bytes`. A bound is an upper
limit on a cost of the pruned model, such as its bytes. The bounds that this module computes depend
only on the shapes of a model's tensors. A block is the attention or the MLP of a layer. A unit of a
block is a KV head with its query heads, a neuron, or an expert.

Legend: The suffix K is the axis of the numbers of units that a block can keep (0, 1, 2, …, all
units). For example, cost_K[k] is the cost of a block that keeps k units.
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
CACHES = ("kv_cache_bytes", "memory")  # targets that count the bytes of cached keys and values


@dataclass(frozen=True)
class Biases:
    """The biases that pruning adds to a model."""

    # Whether the output projection of each block that loses units gets a bias. This bias corrects
    # the output of the pruned block (`Compensation`).
    outputs: bool
    # whether input projections without biases may get biases of zeros, because some model classes
    # of transformers can load biases of output projections only together with these biases
    inputs: bool = False


def bounds_of_shapes(
    target: TargetConfig,
    adapter: ModelAdapter,
    layers: Layers,
    itemsize: int,
    biases: Biases,
    max_length: int | None,
) -> tuple[Bound, ...]:
    """Return one bound for each target that is set in the config.

    layers: the units of each layer.
    itemsize: bytes of one element of a weight, a key or a value.
    biases: the biases that pruning adds.
    max_length: the maximum context length of the model in tokens; None if it is unknown.

    Raises:
        ValueError: the size of the KV cache cannot be computed, because the context length is
            unknown, or because the attention of a layer has no heads that can be pruned.
    """
    bounds = []
    context = target.context or max_length
    for name, asked in targets(target).items():
        caches: tuple[Pair[Tensor], ...] = ()
        if name in CACHES:
            allowed = "a number of tokens, as this model states no context length"
            require(context is not None, "target.context", context, allowed)
            assert context is not None
            sequences = target.sequences if name == "memory" else 1
            caches = _kv_costs(name, adapter, layers, context, itemsize * sequences)

        if name == "kv_cache_bytes":
            bounds.append(Bound(name, asked, 0, caches))
        else:
            size = itemsize if name in ("bytes", "memory") else 1
            bound = _of_weights(name, asked, size, adapter, layers, biases)
            bounds.append(_with_caches(bound, caches))
    return tuple(bounds)


def _with_caches(bound: Bound, caches: tuple[Pair[Tensor], ...]) -> Bound:
    """Return a copy of the bound that also counts the bytes of keys and values.

    caches: for each block, cost_K with the bytes of the block's keys and values. If the target does
        not count these bytes, `caches` is empty, and the given bound is returned unchanged.
    """
    if not caches:
        return bound
    costs = []
    for weights, cache in zip(bound.costs, caches, strict=True):
        costs.append(Pair(weights.attention + cache.attention, weights.mlp + cache.mlp))
    return replace(bound, costs=tuple(costs), beside=caches)


def _of_weights(
    name: str, asked: float, size: int, adapter: ModelAdapter, layers: Layers, biases: Biases
) -> Bound:
    """Return a bound on the cost of all parameters of the model, or of its active parameters.

    Active parameters are the parameters that the model uses for one token. Experts that the router
    does not choose for the token are not included. If whole experts are removed, the router still
    chooses the same number of experts for each token.

    name: the name of the target. With "active_parameters", only active parameters are counted.
    asked: the highest allowed cost.
    size: the cost of one parameter, for example its bytes.
    """
    active = name == "active_parameters"
    total = adapter.model.num_parameters()
    if active:
        total -= adapter.idle_parameters

    costs = []
    for i, (attention, mlp) in enumerate(layers):
        blocks = adapter.blocks(i)
        head_cost_K = _parameters_by_width(blocks.attention, attention, biases, active)
        neuron_cost_K = _parameters_by_width(blocks.mlp, mlp, biases, active)
        costs.append(Pair(size * head_cost_K, size * neuron_cost_K))
    fixed = size * total - sum(float(cost_K[-1]) for pair in costs for cost_K in pair)
    return Bound(name, asked, fixed, tuple(costs), size)


def _parameters_by_width(block: Block, units: Units, biases: Biases, active: bool) -> Tensor:
    """Return, for each number of kept units, the number of parameters of these units.

    The biases that pruning adds to the block are also counted.

    active: whether to count only the parameters that the model uses for one token, without the
        experts that the router does not choose for this token.
    """
    kept_K = torch.arange(units.count + 1, dtype=torch.float64)
    count_K = units.price * kept_K
    members = len(block.members)

    # pruning adds biases only to blocks that lose units
    if biases.outputs and block.output.bias is None and not block.whole:
        count_K[:-1] += members * block.output.weight.shape[0]
    if biases.inputs:
        rows = sum(rows_UR.shape[1] for linear, rows_UR in block.inputs if bias_of(linear) is None)
        count_K[:-1] += rows * kept_K[:-1]

    if active and block.whole:
        idle = block.idle / max(members - block.num_chosen, 1)
        count_K -= idle * (kept_K - block.num_chosen).clamp(min=0)
    elif active:
        count_K *= block.num_chosen / members
    return count_K


def _kv_costs(
    name: str, adapter: ModelAdapter, layers: Layers, context: int, itemsize: int
) -> tuple[Pair[Tensor], ...]:
    """Return, for each block and number of kept units, the bytes of cached keys and values.

    An MLP has no keys and values, so its costs are 0. A layer with sliding-window attention stores
    the keys and values of only one window.

    name: the name of the target, for the error message.
    itemsize: bytes of one element of a key or value, times the number of cached sequences.

    Raises:
        ValueError: the attention of a layer has no prunable heads, as in a state space model.
    """
    blocks = [adapter.attention(i) for i in range(len(layers))]
    if not all(block.inputs for block in blocks):
        expected = "a model whose attention has heads that can be pruned, in all layers"
        raise ValueError(f"target.{name}: expected {expected}")
    caches = DynamicCache(config=adapter.model.config).layers
    # Falcon models with KV groups copy keys and values to all query heads, and cache the copies, so
    # the cache has keys and values for each query head
    copied = getattr(adapter.config, "new_decoder_architecture", False)

    costs = []
    for block, (attention, mlp), cache in zip(blocks, layers, caches, strict=True):
        window = getattr(cache, "sliding_window", None) or context + 1
        tokens = min(context, window - 1)
        channels = block.columns_UC.shape[1]
        if not copied:
            channels //= attention.queries
        channels_K = channels * torch.arange(attention.count + 1, dtype=torch.float64)
        nothing_K = torch.zeros(mlp.count + 1, dtype=torch.float64)
        costs.append(Pair(2 * itemsize * tokens * channels_K, nothing_K))
    return tuple(costs)
