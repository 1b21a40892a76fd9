"""Make budgets and random scores for tiny models, and check rules that every plan must follow.

A budget says how many parameters a plan must remove, and how many each head and neuron has.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from transformers import PreTrainedModel

from flap.method.allocation import Budget, LayerPlan, PruningPlan, Structure, price
from flap.method.importance import Scores
from flap.method.search import Search
from flap.models import Pair, adapt
from tests.cases import tiny_model
from tests.helpers.plans import with_layer

model_of = cache(tiny_model)
Measure = Callable[[Sequence[PruningPlan], int], list[float]]


def budget_of(architecture: str, ratio: float) -> Budget:
    return price(adapt(model_of(architecture)), ratio)


def random_scores(budget: Budget, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.rand(layer.attention.count, 4, generator=generator) for layer in budget.layers]
    neurons = [
        torch.rand(layer.mlp.members * layer.mlp.count, generator=generator)
        for layer in budget.layers
    ]
    return Scores(tuple(map(Pair, heads, neurons)))


def made_up(budget: Budget) -> Measure:
    """Return a function that computes artificial divergences of plans for a search.

    Removing a share s of the KV heads of layer i, or of its neurons, costs (i + 1) · s². The
    divergence of a plan is the sum of these costs, so only the numbers of removed heads and neurons
    matter.
    """

    def nats(plan: PruningPlan) -> float:
        pairs = zip(plan.layers, budget.layers, strict=True)
        return sum(
            (i + 1) * (1 - len(kept) / units.count) ** 2
            for i, (layer, priced) in enumerate(pairs)
            for kept, units in zip(layer, priced, strict=True)
        )

    def measure(plans: Sequence[PruningPlan], num_tokens: int) -> list[float]:
        return [nats(plan) for plan in plans]

    return measure


def tried(structure: Structure, scores: Scores, budget: Budget, measure: Measure) -> Scores:
    """Return the scores with the divergences of the trials that a search needs.

    Each trial prunes only the attention or only the MLP of one layer. A complete run of flap
    measures the same trials before it chooses its plan. If the structure is not a search, return
    the scores unchanged.
    """
    if not isinstance(structure, Search):
        return scores
    layers = zip(scores.layers, budget.layers, strict=True)
    whole = PruningPlan(
        tuple(
            LayerPlan(
                tuple(range(units.attention.count)),
                tuple(range(units.mlp.members * units.mlp.count)),
            )
            for units in budget.layers
        )
    )
    divergences = (
        measure(
            [with_layer(whole, i, trial) for trial in structure.trials(*layer)], structure.tokens
        )
        for i, layer in enumerate(layers)
    )
    return replace(scores, divergences=tuple(map(tuple, divergences)))


def allocated(
    structure: Structure, scores: Scores, budget: Budget, measure: Measure | None = None
) -> PruningPlan:
    """Return the plan that the structure makes from these scores within the budget.

    measure: the function with which a search measures plans; `made_up(budget)` if None.
    """
    return structure.allocate(tried(structure, scores, budget, measure or made_up(budget)), budget)


def unit_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Count the parameters of one KV head and of one neuron in the tensors of the first layer."""
    attention = model.model.layers[0].self_attn
    mlp = model.model.layers[0].mlp
    sizes = []
    for inputs, output, units in (
        (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj,
            model.config.num_key_value_heads,
        ),
        ((mlp.gate_proj, mlp.up_proj), mlp.down_proj, model.config.intermediate_size),
    ):
        sizes.append(
            (sum(p.numel() for i in inputs for p in i.parameters()) + output.weight.numel())
            // units
        )
    return sizes[0], sizes[1]


def assert_meets(plan: PruningPlan, model: PreTrainedModel, ratio: float) -> None:
    head, neuron = unit_sizes(model)
    groups = model.config.num_key_value_heads
    neurons = model.config.intermediate_size
    assert len(plan.layers) == 4
    for layer in plan.layers:
        for kept, units in ((layer.attention, groups), (layer.mlp, neurons)):
            assert list(kept) == sorted(set(kept))
            assert set(kept) <= set(range(units))
            assert kept
    total = 4 * (groups * head + neurons * neuron)
    kept = sum(len(layer.attention) * head + len(layer.mlp) * neuron for layer in plan.layers)
    assert abs((total - kept) - ratio * total) <= max(head, neuron)
