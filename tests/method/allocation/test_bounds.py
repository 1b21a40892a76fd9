"""Targets in any unit: what every structure keeps is within all of them, and nothing that leaves would still fit."""

import pytest
import torch

from flap.config import TargetConfig
from flap.method.allocation import ALAM, Biases, Bound, Budget, LayerPlan, bounds_of_shapes
from flap.models import Pair, adapt
from tests.cases import ARCHITECTURES, STRUCTURES
from tests.helpers.ratios import allocated, budget_of, model_of, random_scores
from tests.method.allocation.test_toy import TOY_LAYERS, TOY_SCORES

ONE_RANKING = ("AL-AM", "search")


def bound(most: float, *prices: tuple[float, float], fixed: float = 0.0) -> Bound:
    """A bound on two heads and four neurons a layer. prices: of a head and of a neuron of each layer."""
    costs = tuple(
        Pair(head * torch.arange(3.0), neuron * torch.arange(5.0)) for head, neuron in prices
    )
    return Bound("bytes", most, fixed, costs)


def asked(architecture: str, biases: Biases, **target: float) -> Budget:
    """The budget of a tiny model with float32 weights and a context of 100 tokens."""
    dense = budget_of(architecture, 0.0)
    target |= {"context": 100}
    return dense.within(
        bounds_of_shapes(
            TargetConfig(**target), adapt(model_of(architecture)), dense.layers, 4, biases, 128
        )
    )


def total(architecture: str) -> int:
    return sum(parameter.numel() for parameter in model_of(architecture).parameters())


# The ranking of the toy: L0h1 L1h0 L0n3 L1n3 first, then L0n2 .39, L1h1 -.29, L0n1 -.39, L1n0-2 -.5, L0h0 -.87, L0n0.
@pytest.mark.parametrize(
    ("bounds", "first", "second"),
    [
        # 26 for the first four, then 29, 39, 42, 45, 48, 51; L0h0 would make 61, L0n0 makes 54
        ([bound(54, (10, 3), (10, 3))], LayerPlan((1,), (0, 1, 2, 3)), LayerPlan((0, 1), (0, 1, 2, 3))),
        ([bound(53, (10, 3), (10, 3))], LayerPlan((1,), (1, 2, 3)), LayerPlan((0, 1), (0, 1, 2, 3))),
        ([bound(63, (10, 3), (10, 3), fixed=10)], LayerPlan((1,), (1, 2, 3)), LayerPlan((0, 1), (0, 1, 2, 3))),
        # heads alone cost anything, so every neuron stays
        ([bound(3, (1, 0), (1, 0))], LayerPlan((1,), (0, 1, 2, 3)), LayerPlan((0, 1), (0, 1, 2, 3))),
        # both hold: three heads, and of the neurons those that 40 pays for besides them
        (
            [bound(3, (1, 0), (1, 0)), bound(40, (10, 3), (10, 3))],
            LayerPlan((1,), (2, 3)),
            LayerPlan((0, 1), (3,)),
        ),
    ],
)  # fmt: skip
def test_alam_by_hand(bounds: list[Bound], first: LayerPlan, second: LayerPlan) -> None:
    budget = Budget(TOY_LAYERS, 0.0).within(tuple(bounds))
    ALAM().check(budget)
    assert ALAM().allocate(TOY_SCORES, budget).layers == (first, second)


def test_what_costs_more_leaves_first() -> None:
    """Both layers have the same errors; a neuron of the second one costs ten times as much."""
    dear = bound(34, (1, 1), (1, 10))
    scores = random_scores(Budget(TOY_LAYERS, 0.0))
    scores = type(scores)((scores.layers[0],) * 2)
    plan = ALAM(scale="error").allocate(scores, Budget(TOY_LAYERS, 0.0).within((dear,)))
    assert (
        len(plan.layers[1].mlp) == 2
        and sum(map(len, plan.layers[0])) + len(plan.layers[1].attention) == 8
    )


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("architecture", ["llama-gqa", "llama-gqa-biases", "qwen3-gqa"])
@pytest.mark.parametrize("share", [0.5, 0.8, 1.2])
def test_parameters_are_within_one_unit(architecture: str, name: str, share: float) -> None:
    most = share * total(architecture)
    budget = asked(architecture, Biases(True), parameters=most)
    structure = STRUCTURES[name]()
    structure.check(budget)
    plan = allocated(structure, random_scores(budget), budget)
    [one] = budget.bounds
    widths = budget.widths(plan)
    realised = one.cost(budget.widths(plan))
    assert realised <= most
    if share > 1:
        assert realised == total(architecture)
    elif name in ONE_RANKING:
        assert_no_unit_fits(budget, widths)
    else:  # they give all layers the same, or set heads against neurons by number
        assert (
            most - realised <= max(units.price for layer in budget.layers for units in layer) * 1.1
        )


def assert_no_unit_fits(budget: Budget, widths: list[Pair[int]]) -> None:
    """No block that lost a unit could have it back."""
    for i, layer in enumerate(budget.layers):
        for block, units in zip(Pair._fields, layer, strict=True):
            more = widths[i]._replace(**{block: getattr(widths[i], block) + 1})
            if getattr(widths[i], block) < units.count:
                larger = [*widths[:i], more, *widths[i + 1 :]]
                assert any(one.cost(larger) > one.asked for one in budget.bounds)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(("size", "cache"), [(0.9, 0.5), (0.6, 0.75), (0.6, 0.3)])
def test_several_targets_hold_together(name: str, size: float, cache: float) -> None:
    everything = (
        4 * 4 * 2 * 8 * 100 * 4
    )  # bytes of keys and values: layers, KV heads, both, channels, tokens, float32
    target = {"bytes": 4 * size * total("llama-gqa"), "kv_cache_bytes": cache * everything}
    budget = asked("llama-gqa", Biases(True), **target)
    plan = allocated(STRUCTURES[name](), random_scores(budget), budget)
    values = {one.target: one.values(budget.widths(plan)) for one in budget.bounds}
    assert values["kv_cache_bytes"]["dense"] == everything
    assert all(one["realised"] <= one["asked"] for one in values.values())
    if name in ONE_RANKING:
        assert_no_unit_fits(budget, budget.widths(plan))
    least = sum(everything * len(layer.attention) / 16 for layer in plan.layers)
    assert values["kv_cache_bytes"]["realised"] == least


@pytest.mark.parametrize(
    "architecture",
    [*(name for name in ARCHITECTURES if "qwen" in name or "mistral" in name), "gemma4"],
)
def test_a_sliding_layer_keeps_its_window(architecture: str) -> None:
    model = model_of(architecture)
    context = 40
    budget = budget_of(architecture, 0.0)
    target = TargetConfig(kv_cache_bytes=1e9, context=context)
    [one] = bounds_of_shapes(target, adapt(model), budget.layers, 4, Biases(False), None)
    cache = model(torch.arange(3, 3 + context)[None], use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert (
        one.values([Pair(*(units.count for units in layer)) for layer in budget.layers])["dense"]
        == held
    )


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_least_that_is_named_is_reached(name: str) -> None:
    with pytest.raises(ValueError, match="at least") as caught:
        STRUCTURES[name]().check(asked("llama-gqa", Biases(True), parameters=1))
    least = int(str(caught.value).rpartition(" ")[2])
    budget = asked("llama-gqa", Biases(True), parameters=least)
    STRUCTURES[name]().check(budget)
    plan = allocated(STRUCTURES[name](), random_scores(budget), budget)
    assert set(budget.widths(plan)) == {Pair(1, 1)}
    assert budget.to_remove <= budget.total - budget.kept(plan)
