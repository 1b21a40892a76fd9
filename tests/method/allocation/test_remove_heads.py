"""A plan removes exactly `remove_heads` query heads; a number that the ratio forbids is refused."""

from dataclasses import replace

import pytest

from flap.method.allocation import ALMM, ULMM, Budget, PruningPlan, Units
from flap.models import Pair
from tests.helpers.ratios import assert_meets, budget_of, model_of, random_scores

MANUAL = {"UL-MM": ULMM, "AL-MM": ALMM}

# The ranges are the possible numbers of removed query heads, computed by hand. llama-mha has 54,272
# prunable parameters: 1,024 in each of its 32 heads, and 96 in each neuron. llama-gqa has 46,080
# prunable parameters: 1,536 in each KV head with its two query heads, and 96 in each neuron.
ALLOWED = [
    # A ratio of 0.35 removes 18,995 parameters, so at most 18 heads can be removed.
    ("llama-mha", 0.35, range(0, 19)),
    # A ratio of 0.7 removes 37,990 parameters. The neurons that may be removed have only 21,120
    # parameters, so at least 17 heads must be removed. At most 28 of the 32 heads can be removed,
    # because each of the 4 layers keeps at least one head.
    ("llama-mha", 0.7, range(17, 29)),
    ("llama-gqa", 0.35, range(0, 21, 2)),
    ("llama-gqa", 0.7, range(16, 25, 2)),
]


@pytest.mark.parametrize("structure", MANUAL)
@pytest.mark.parametrize(("architecture", "ratio", "allowed"), ALLOWED)
def test_remove_heads_is_exact_over_its_range(
    architecture: str, ratio: float, allowed: range, structure: str
) -> None:
    budget = budget_of(architecture, ratio)
    queries = budget.layers[0].attention.queries
    for heads in allowed:
        chosen = MANUAL[structure](remove_heads=heads)
        chosen.check(budget)
        plan = chosen.allocate(random_scores(budget, heads), budget)
        kept = [len(layer.attention) * queries for layer in plan.layers]
        assert 4 * 8 - sum(kept) == heads
        assert_meets(plan, model_of(architecture), ratio)
        if structure == "UL-MM":
            assert max(kept) - min(kept) <= queries


@pytest.mark.parametrize("structure", MANUAL)
@pytest.mark.parametrize(("architecture", "ratio", "allowed"), ALLOWED)
def test_remove_heads_out_of_range_names_it(
    architecture: str, ratio: float, allowed: range, structure: str
) -> None:
    budget = budget_of(architecture, ratio)
    step = budget.layers[0].attention.queries
    lowest = allowed[0]
    highest = allowed[-1]
    refused = {-1, -step, lowest - step, highest + step, 1000}
    if step > 1:
        refused.add(lowest + 1)
    for heads in refused:
        refusal = f"structure.remove_heads={heads}: .* {lowest} to {highest}, "
        with pytest.raises(ValueError, match=refusal):
            MANUAL[structure](remove_heads=heads).check(budget)


@pytest.mark.parametrize(
    ("ratio", "units"),
    [
        (0.4, 2),
        # The layer has 60 parameters: 10 in each of its 5 heads, and 1 in each of its 10 neurons. A
        # ratio of 0.69 removes 41.4 parameters. Three heads and the nine neurons that may be
        # removed have only 39 parameters, so a fourth head must be removed.
        (0.69, 4),
        # At most four of the five heads can be removed, because a layer keeps at least one head.
        (0.81, 4),
    ],
)
def test_without_remove_heads_it_is_the_share_that_neurons_can_pay_for(
    ratio: float, units: int
) -> None:
    layer = Pair(Units(5, 10), Units(10, 1))
    assert ULMM().heads_to_remove(Budget((layer,), ratio)) == units


def removed_query_heads(plan: PruningPlan, budget: Budget) -> list[int]:
    """Return the number of query heads that each layer loses with a plan."""
    removed = []
    for kept, units in zip(plan.layers, budget.layers, strict=True):
        heads = units.attention.count - len(kept.attention)
        removed.append(heads * units.attention.queries)
    return removed


# Each row has an architecture, a dict with the number of query heads per KV head, and the possible
# numbers of removed query heads. The keys of the dict are the layers that can lose heads.
OF_HYBRIDS = [
    ("qwen3_5", {1: 2, 3: 2}, range(0, 13, 2)),
    ("qwen3_next", {1: 2, 3: 2}, range(0, 13, 2)),
    ("gemma4", {0: 2, 1: 2, 2: 4, 3: 2, 4: 2, 5: 4}, range(0, 33, 2)),
    ("deepseek_v3", {}, range(0, 1)),
]


@pytest.mark.parametrize("structure", MANUAL)
@pytest.mark.parametrize(("architecture", "groups", "allowed"), OF_HYBRIDS)
def test_hybrids_lose_whole_kv_heads(
    architecture: str, groups: dict[int, int], allowed: range, structure: str
) -> None:
    budget = budget_of(architecture, 0.4)
    for heads in allowed:
        ratio = 0.2
        if heads > 0:
            ratio = 0.5 if heads > 8 else 0.3
        chosen = MANUAL[structure](remove_heads=heads)
        chosen.check(replace(budget, ratio=ratio))
        removed = removed_query_heads(chosen.allocate(random_scores(budget, heads), budget), budget)
        assert sum(removed) == heads
        for i, number in enumerate(removed):
            if i in groups:
                assert number % groups[i] == 0
            else:
                assert number == 0
        if structure == "UL-MM" and groups:
            in_groups = [removed[i] for i in groups]
            assert max(in_groups) - min(in_groups) <= max(groups.values())


@pytest.mark.parametrize("structure", MANUAL)
def test_layers_with_fewer_heads_lose_what_they_have(structure: str) -> None:
    """Heads are removed only from layers that can lose heads.

    A model that has already been pruned may have layers with different numbers of heads. Here, the
    last layer has no heads. The layer before the last has one KV head, and cannot lose it. The
    first layer can lose only one of its two KV heads. Each KV head has two query heads.
    """
    counts = (2, 4, 4, 1, 0)
    layers = []
    for count in counts:
        price = 20 if count else 0
        layers.append(Pair(Units(count, price, 2), Units(40, 2)))
    budget = Budget(tuple(layers), 0.5)

    for heads, uniform in ((6, [2, 2, 2, 0, 0]), (10, [2, 4, 4, 0, 0]), (14, [2, 6, 6, 0, 0])):
        chosen = MANUAL[structure](remove_heads=heads)
        chosen.check(budget)
        removed = removed_query_heads(chosen.allocate(random_scores(budget), budget), budget)
        assert sum(removed) == heads
        assert removed[3:] == [0, 0]
        if structure == "UL-MM":
            assert removed == uniform


def test_groups_of_several_sizes_are_named() -> None:
    sizes = r"in steps of 2 or 4 \(query heads that share a KV head: 2 or 4\)$"
    with pytest.raises(ValueError, match=rf"remove_heads=3: at ratio=0\.3 .* 0 to 18, {sizes}"):
        ALMM(remove_heads=3).check(budget_of("gemma4", 0.3))
