"""Budgets and random scores of the tiny models, and the contract that every plan keeps."""

from functools import cache

import torch
from transformers import PreTrainedModel

from flap.allocation import Budget, PruningPlan, price
from flap.importance import Scores
from flap.models import adapt
from tests.cases import tiny_model

model_of = cache(tiny_model)


def budget_of(architecture: str, ratio: float) -> Budget:
    return price(adapt(model_of(architecture)), ratio)


def random_scores(budget: Budget, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(
        tuple(torch.rand(layer.kv_heads, 4, generator=generator) for layer in budget.layers),
        tuple(torch.rand(layer.experts * layer.neurons, generator=generator) for layer in budget.layers),
    )


def unit_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters of one KV head and of one neuron, summed here from the first layer's tensors."""
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    sizes = []
    for inputs, output, units in (
        ((attention.q_proj, attention.k_proj, attention.v_proj), attention.o_proj, model.config.num_key_value_heads),
        ((mlp.gate_proj, mlp.up_proj), mlp.down_proj, model.config.intermediate_size),
    ):
        sizes.append((sum(p.numel() for i in inputs for p in i.parameters()) + output.weight.numel()) // units)
    return sizes[0], sizes[1]


def assert_meets(plan: PruningPlan, model: PreTrainedModel, ratio: float) -> None:
    head, neuron = unit_sizes(model)
    groups, neurons = model.config.num_key_value_heads, model.config.intermediate_size
    assert len(plan.layers) == 4
    for layer in plan.layers:
        for kept, units in ((layer.kv_heads, groups), (layer.neurons, neurons)):
            assert list(kept) == sorted(set(kept))
            assert set(kept) <= set(range(units))
            assert kept
    total = 4 * (groups * head + neurons * neuron)
    kept = sum(len(layer.kv_heads) * head + len(layer.neurons) * neuron for layer in plan.layers)
    assert abs((total - kept) - ratio * total) <= max(head, neuron)
