"""A plan meets all targets, and keeps nearly as many heads and neurons as they allow.

A plan says which heads and neurons each layer keeps. A bound is the limit that a target sets on a
cost, such as bytes. A budget contains the bounds.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flap.config import TargetConfig
from flap.method.allocation import ALAM, Biases, Bound, Budget, bounds_of_shapes
from flap.models import Pair, adapt
from tests.cases import ARCHITECTURES, STRUCTURES
from tests.helpers.plans import drawn
from tests.helpers.ratios import allocated, budget_of, model_of, random_scores
from tests.method.allocation.test_toy import TOY_LAYERS, TOY_SCORES

ONE_RANKING = ("AL-AM", "search")


def costs(head: float, neuron: float) -> Pair[Tensor]:
    """Return the costs of 0 to 2 heads and the costs of 0 to 4 neurons of a layer."""
    return Pair(head * torch.arange(3.0), neuron * torch.arange(5.0))


def bound(most: float, head: float, neuron: float, fixed: float = 0.0) -> Bound:
    """Return a bound on the bytes of two layers, given the bytes of a head and of a neuron.

    most: the largest number of bytes that the bound allows.
    fixed: the bytes of everything that pruning does not change.
    """
    return Bound("bytes", most, fixed, (costs(head, neuron),) * 2)


def asked(architecture: str, biases: Biases, **target: float) -> Budget:
    """Return the budget of a tiny float32 model for given targets. The context has 100 tokens."""
    dense = budget_of(architecture, 0.0)
    adapter = adapt(model_of(architecture))
    targets = TargetConfig(**target, context=100)
    return dense.within(bounds_of_shapes(targets, adapter, dense.layers, 4, biases, 128))


def total(architecture: str) -> int:
    return sum(parameter.numel() for parameter in model_of(architecture).parameters())


def assert_no_unit_fits(budget: Budget, widths: list[Pair[int]]) -> None:
    """Check that a bound is exceeded if any pruned layer keeps one head or neuron more."""

    def fits(i: int, layer: Pair[int]) -> bool:
        larger = widths.copy()
        larger[i] = layer
        return all(bound.cost(larger) <= bound.asked for bound in budget.bounds)

    for i, layer in enumerate(budget.layers):
        heads, neurons = widths[i]
        if heads < layer.attention.count:
            assert not fits(i, Pair(heads + 1, neurons))
        if neurons < layer.mlp.count:
            assert not fits(i, Pair(heads, neurons + 1))


# The toy model's units (heads and neurons) are ranked as follows. L0h1 is head 1 of layer 0, and
# L1n3 is neuron 3 of layer 1. The best head and the best neuron of each layer (L0h1, L1h0, L0n3 and
# L1n3) come first. Then come, by their scores, L0n2 (0.39), L1h1 (-0.29), L0n1 (-0.39), L1n0 to
# L1n2 (-0.5 each), L0h0 (-0.87) and L0n0 (-1.16).
TOY_BUDGET = Budget(TOY_LAYERS, 0.0)
# Each case has a bound, and the heads and neurons that layer 0 keeps: "01 0111" stands for head 1
# and neurons 1 to 3. Layer 1 keeps all of its heads and neurons.
BY_HAND = [
    # The first four units cost 26 together. As the next six units (L0n2 to L1n2) are added, the
    # total grows to 29, 39, 42, 45, 48 and 51. Then L0h0 is left out, because the total would be
    # 61, which exceeds the bound of 54. With L0n0 instead of L0h0, the total is exactly 54.
    (bound(54, head=10, neuron=3), "01 1111"),
    (bound(53, head=10, neuron=3), "01 0111"),
    (bound(63, head=10, neuron=3, fixed=10), "01 0111"),
    # Neurons cost nothing here, so no neuron is removed.
    (bound(3, head=1, neuron=0), "01 1111"),
]


@pytest.mark.parametrize(("limit", "first"), BY_HAND)
def test_alam_by_hand(limit: Bound, first: str) -> None:
    budget = TOY_BUDGET.within((limit,))
    ALAM().check(budget)
    plan = ALAM().allocate(TOY_SCORES, budget)
    assert plan.layers == (drawn(first), drawn("11 1111"))


def test_two_bounds_by_hand() -> None:
    """A plan that has to meet two bounds keeps three heads and three neurons.

    The first bound allows three heads. The second bound allows a cost of 40: three heads cost 30,
    and three neurons cost 9.
    """
    three_heads = bound(3, head=1, neuron=0)
    parameters = bound(40, head=10, neuron=3)
    budget = TOY_BUDGET.within((three_heads, parameters))
    ALAM().check(budget)
    plan = ALAM().allocate(TOY_SCORES, budget)
    assert plan.layers == (drawn("01 0011"), drawn("11 0001"))


def test_units_that_cost_more_leave_first() -> None:
    """The scores of both layers are equal, but a neuron costs 10 in layer 1, and 1 in layer 0.

    So only neurons of layer 1 are removed.
    """
    cheap = costs(head=1, neuron=1)
    dear = costs(head=1, neuron=10)
    budget = TOY_BUDGET.within((Bound("bytes", 34, 0.0, (cheap, dear)),))
    scores = random_scores(budget)
    scores = replace(scores, layers=(scores.layers[0],) * 2)
    first, second = ALAM(scale="error").allocate(scores, budget).layers
    assert first == drawn("11 1111")
    assert len(second.attention) == 2
    assert len(second.mlp) == 2


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("architecture", ["llama-gqa", "llama-gqa-biases", "qwen3-gqa"])
@pytest.mark.parametrize("share", [0.5, 0.8, 1.2])
def test_parameters_are_within_one_unit(architecture: str, name: str, share: float) -> None:
    most = share * total(architecture)
    budget = asked(architecture, Biases(True), parameters=most)
    structure = STRUCTURES[name]()
    structure.check(budget)
    plan = allocated(structure, random_scores(budget), budget)
    widths = budget.widths(plan)
    [parameters] = budget.bounds
    realised = parameters.cost(widths)
    assert realised <= most
    if share > 1:
        assert realised == total(architecture)
    elif name in ONE_RANKING:
        assert_no_unit_fits(budget, widths)
    else:
        # The plan may keep about one head or neuron less than the target allows, because UL-UM and
        # UL-MM prune all layers equally, and AL-MM ranks heads and neurons separately.
        largest = max(units.price for layer in budget.layers for units in layer)
        assert most - realised <= 1.1 * largest


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(
    ("size", "cache"),
    [
        (0.9, 0.5),
        (0.6, 0.75),
        (0.6, 0.3),
    ],
)
def test_several_targets_hold_together(name: str, size: float, cache: float) -> None:
    # The bytes of the KV cache: 4 layers · 4 KV heads · 2 (keys and values) · 8 channels · 100
    # tokens · 4 bytes per value.
    cache_bytes = 4 * 4 * 2 * 8 * 100 * 4
    target = {
        "bytes": 4 * size * total("llama-gqa"),
        "kv_cache_bytes": cache * cache_bytes,
    }
    budget = asked("llama-gqa", Biases(True), **target)
    plan = allocated(STRUCTURES[name](), random_scores(budget), budget)
    widths = budget.widths(plan)
    values = {bound.target: bound.values(widths) for bound in budget.bounds}
    assert values["kv_cache_bytes"]["dense"] == cache_bytes
    for value in values.values():
        assert value["realised"] <= value["asked"]
    if name in ONE_RANKING:
        assert_no_unit_fits(budget, widths)
    kept_heads = sum(len(layer.attention) for layer in plan.layers)
    assert values["kv_cache_bytes"]["realised"] == cache_bytes * kept_heads / 16


SLIDING = [name for name in ARCHITECTURES if "qwen" in name or "mistral" in name]


@pytest.mark.parametrize("architecture", [*SLIDING, "gemma4"])
def test_a_sliding_layer_keeps_its_window(architecture: str) -> None:
    model = model_of(architecture)
    context = 40
    budget = budget_of(architecture, 0.0)
    target = TargetConfig(kv_cache_bytes=1e9, context=context)
    [cache_bound] = bounds_of_shapes(target, adapt(model), budget.layers, 4, Biases(False), None)

    tokens_T = torch.arange(3, 3 + context)
    cache = model(tokens_T[None], use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bound.dense == held


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_least_that_is_named_is_reached(name: str) -> None:
    structure = STRUCTURES[name]()
    with pytest.raises(ValueError, match="at least") as caught:
        structure.check(asked("llama-gqa", Biases(True), parameters=1))
    _, _, least = str(caught.value).rpartition(" ")

    budget = asked("llama-gqa", Biases(True), parameters=int(least))
    structure.check(budget)
    plan = allocated(structure, random_scores(budget), budget)
    assert set(budget.widths(plan)) == {Pair(1, 1)}
    assert budget.to_remove <= budget.total - budget.kept(plan)
