"""`remove_heads` is exact over the whole range that the budget allows, and an error outside it."""

from dataclasses import replace

import pytest

from flap.method.allocation import ALMM, ULMM, Budget, PruningPlan, Units
from flap.models import Pair
from tests.helpers.ratios import assert_meets, budget_of, model_of, random_scores

MANUAL = {"UL-MM": ULMM, "AL-MM": ALMM}

# Counted by hand: 54272 prunable parameters at 1024 a head and 96 a neuron; 46080 at 1536 a KV head of two queries.
ALLOWED = [
    ("llama-mha", 0.35, range(0, 19)),  # 18995 to remove pay for 18 heads
    (
        "llama-mha",
        0.7,
        range(17, 29),
    ),  # 37990: all spare neurons are 21120, the rest is 17 heads; 28 leave one a layer
    ("llama-gqa", 0.35, range(0, 21, 2)),
    ("llama-gqa", 0.7, range(16, 25, 2)),
]


@pytest.mark.parametrize("structure", MANUAL)
@pytest.mark.parametrize(("architecture", "ratio", "allowed"), ALLOWED)
def test_remove_heads_is_exact_over_its_range(
    architecture: str, ratio: float, allowed: range, structure: str
) -> None:
    budget = budget_of(architecture, ratio)
    for heads in allowed:
        chosen = MANUAL[structure](remove_heads=heads)
        chosen.check(budget)
        plan = chosen.allocate(random_scores(budget, heads), budget)
        kept = [len(layer.attention) * budget.layers[0].attention.queries for layer in plan.layers]
        assert 4 * 8 - sum(kept) == heads
        assert_meets(plan, model_of(architecture), ratio)
        if structure == "UL-MM":
            assert max(kept) - min(kept) <= budget.layers[0].attention.queries


@pytest.mark.parametrize("structure", MANUAL)
@pytest.mark.parametrize(("architecture", "ratio", "allowed"), ALLOWED)
def test_remove_heads_out_of_range_names_it(
    architecture: str, ratio: float, allowed: range, structure: str
) -> None:
    budget = budget_of(architecture, ratio)
    step = budget.layers[0].attention.queries
    for heads in {
        -1,
        -step,
        allowed[0] - step,
        allowed[-1] + step,
        allowed[0] + 1 if step > 1 else 1000,
    }:
        with pytest.raises(
            ValueError, match=f"structure.remove_heads={heads}: .* {allowed[0]} to {allowed[-1]}, "
        ):
            MANUAL[structure](remove_heads=heads).check(budget)


@pytest.mark.parametrize(
    ("layer", "ratio", "units"),
    [
        (Pair(Units(5, 10), Units(10, 1)), 0.4, 2),
        (
            Pair(Units(5, 10), Units(10, 1)),
            0.69,
            4,
        ),  # 41.4 to remove: three heads leave more than nine neurons can pay
        (Pair(Units(5, 10), Units(10, 1)), 0.81, 4),  # one head stays
    ],
)
def test_left_out_it_is_the_share_that_neurons_can_pay(
    layer: Pair[Units], ratio: float, units: int
) -> None:
    assert ULMM().heads_to_remove(Budget((layer,), ratio)) == units


def query_heads(plan: PruningPlan, budget: Budget) -> list[int]:
    """Those that leave each layer."""
    pairs = zip(plan.layers, budget.layers, strict=True)
    return [
        (prices.attention.count - len(kept.attention)) * prices.attention.queries
        for kept, prices in pairs
    ]


# The layers that can lose heads, the query heads of one KV head in each, and all that one of them has.
OF_HYBRIDS = [
    ("qwen3_5", {1: 2, 3: 2}, range(0, 13, 2)),
    ("qwen3_next", {1: 2, 3: 2}, range(0, 13, 2)),
    ("gemma4", {0: 2, 1: 2, 2: 4, 3: 2, 4: 2, 5: 4}, range(0, 33, 2)),
    ("deepseek_v3", {}, range(0, 1)),
]


@pytest.mark.parametrize("structure", MANUAL)
@pytest.mark.parametrize(("architecture", "groups", "allowed"), OF_HYBRIDS)
def test_hybrids_lose_as_many_query_heads(
    architecture: str, groups: dict[int, int], allowed: range, structure: str
) -> None:
    budget = budget_of(architecture, 0.4)
    for heads in allowed:
        chosen = MANUAL[structure](remove_heads=heads)
        chosen.check(replace(budget, ratio=0.5 if heads > 8 else 0.3 if heads else 0.2))
        leaving = query_heads(chosen.allocate(random_scores(budget, heads), budget), budget)
        assert sum(leaving) == heads
        assert all(
            gone % groups.get(i, 1) == 0 and (i in groups or not gone)
            for i, gone in enumerate(leaving)
        )
        if structure == "UL-MM" and groups:
            assert max(leaving[i] for i in groups) - min(leaving[i] for i in groups) <= max(
                groups.values()
            )


@pytest.mark.parametrize("structure", MANUAL)
def test_layers_with_fewer_heads_left_give_what_they_have(structure: str) -> None:
    """As in a model that was pruned before: the last layer has no heads, the first one KV head to give."""
    counts = (2, 4, 4, 1, 0)
    budget = Budget(
        tuple(Pair(Units(count, 20 * bool(count), 2), Units(40, 2)) for count in counts), 0.5
    )
    for heads, uniform in ((6, [2, 2, 2, 0, 0]), (10, [2, 4, 4, 0, 0]), (14, [2, 6, 6, 0, 0])):
        chosen = MANUAL[structure](remove_heads=heads)
        chosen.check(budget)
        leaving = query_heads(chosen.allocate(random_scores(budget), budget), budget)
        assert sum(leaving) == heads and leaving[3:] == [0, 0]
        assert structure == "AL-MM" or leaving == uniform


def test_groups_of_several_sizes_are_named() -> None:
    line = r"remove_heads=3: at ratio=0\.3 .* 0 to 18, in steps of 2 or 4 \(query heads that share a KV head: 2 or 4\)$"
    with pytest.raises(ValueError, match=line):
        ALMM(remove_heads=3).check(budget_of("gemma4", 0.3))
