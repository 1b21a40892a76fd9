"""`remove_heads` is exact over the whole range that the budget allows, and an error outside it."""

import pytest

from flap.allocation import ALMM, ULMM, Budget, Units
from flap.models import Pair
from tests.helpers.ratios import assert_meets, budget_of, model_of, random_scores

MANUAL = {"UL-MM": ULMM, "AL-MM": ALMM}

# Counted by hand: 54272 prunable parameters at 1024 a head and 96 a neuron; 46080 at 1536 a KV head of two queries.
ALLOWED = [
    ("llama-mha", 0.35, range(0, 19)),  # 18995 to remove pay for 18 heads
    ("llama-mha", 0.7, range(17, 29)),  # 37990: all spare neurons are 21120, the rest is 17 heads; 28 leave one a layer
    ("llama-gqa", 0.35, range(0, 21, 2)),
    ("llama-gqa", 0.7, range(16, 25, 2)),
]


@pytest.mark.parametrize("structure", MANUAL)
@pytest.mark.parametrize(("architecture", "ratio", "allowed"), ALLOWED)
def test_remove_heads_is_exact_over_its_range(architecture: str, ratio: float, allowed: range, structure: str) -> None:
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
def test_remove_heads_outside_its_range_names_it(
    architecture: str, ratio: float, allowed: range, structure: str
) -> None:
    budget = budget_of(architecture, ratio)
    step = budget.layers[0].attention.queries
    for heads in {-1, -step, allowed[0] - step, allowed[-1] + step, allowed[0] + 1 if step > 1 else 1000}:
        with pytest.raises(ValueError, match=f"structure.remove_heads={heads}: .* {allowed[0]} to {allowed[-1]}, "):
            MANUAL[structure](remove_heads=heads).check(budget)


@pytest.mark.parametrize("units", range(0, 13))
def test_ulmm_spreads_evenly(units: int) -> None:
    budget = budget_of("llama-gqa", 0.5)
    spread = ULMM(remove_heads=2 * units).removed_kv_heads(budget)
    assert sum(spread) == units
    assert set(spread) <= {units // 4, -(-units // 4)}


@pytest.mark.parametrize(
    ("layer", "ratio", "units"),
    [
        (Pair(Units(5, 10), Units(10, 1)), 0.4, 2),
        (Pair(Units(5, 10), Units(10, 1)), 0.69, 4),  # 41.4 to remove: three heads leave more than nine neurons can pay
        (Pair(Units(5, 10), Units(10, 1)), 0.81, 4),  # one head stays
    ],
)
def test_left_out_it_is_the_proportional_share_that_neurons_can_pay(
    layer: Pair[Units], ratio: float, units: int
) -> None:
    assert ULMM().units_to_remove(Budget((layer,), ratio)) == units


def test_layers_that_give_a_head_pay_what_the_others_cannot() -> None:
    # 144 to remove: every second layer gives a head at 20; the 64 left are 21 of the 24 spare neurons
    budget = Budget((Pair(Units(3, 20), Units(4, 3)),) * 8, ratio=0.25)
    structure = ULMM(remove_heads=4)
    structure.check(budget)
    removed = budget.total - budget.kept(structure.allocate(random_scores(budget), budget))
    assert abs(removed - 144) <= 20
