"""`min_heads`, `min_neurons`, `multiple_of_heads`, `round_to`: every layer holds them, and no plan with them is nearer.

The oracle tries out every number of units that layers may keep.
"""

from collections.abc import Callable
from functools import cache
from itertools import product

import pytest
import torch

from flap.method.allocation import (
    ALAM,
    ALMM,
    ULUM,
    Budget,
    LayerPlan,
    PruningPlan,
    Structure,
    Units,
)
from flap.method.importance import Scores
from flap.models import Pair
from tests.cases import STRUCTURES
from tests.helpers.ratios import allocated, budget_of, random_scores

LIMITS = [
    {"round_to": 8},
    {"round_to": 32},
    {"min_heads": 3},
    {"min_neurons": 50},
    {"min_neurons": 56},  # heads alone pay
    {"min_heads": 2, "min_neurons": 17, "round_to": 8},
    {"multiple_of_heads": 2},
    {"multiple_of_heads": 3},  # does not divide the heads of a layer
    {"multiple_of_heads": 2, "min_heads": 3, "round_to": 8},
]
# Two layers of three heads at 10 and twenty neurons at 1, of which four fill no block of 8: at most 12 numbers a layer.
SMALL = (Pair(Units(3, 10), Units(20, 1)),) * 2
SMALL_RATIOS = [0.1, 0.17, 0.25, 0.31, 0.38, 0.44, 0.5, 0.57, 0.63]


def small_scores(seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    heads, neurons = (torch.rand(2, *shape, generator=generator) for shape in ((3, 4), (20,)))
    return Scores(tuple(map(Pair, heads, neurons)))


def off_by(plan: PruningPlan, budget: Budget) -> float:
    return abs(budget.total - budget.kept(plan) - budget.to_remove)


def assert_holds(plan: PruningPlan, structure: Structure) -> None:
    for layer in plan.layers:
        assert (
            len(layer.attention) >= structure.min_heads and len(layer.mlp) >= structure.min_neurons
        )
        assert len(layer.mlp) % (structure.round_to or 1) == 0
        assert len(layer.attention) % structure.multiple_of_heads == 0
        assert list(layer.attention) == sorted(set(layer.attention))
        assert list(layer.mlp) == sorted(set(layer.mlp))


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("architecture", ["llama-mha", "llama-gqa-biases"])
def test_every_layer_holds_them(architecture: str, name: str, limits: dict[str, int]) -> None:
    structure = STRUCTURES[name](**limits)
    met = 0
    for ratio in (0.1, 0.2, 0.35, 0.5, 0.7):
        budget = budget_of(architecture, ratio)
        try:
            structure.check(budget)
        except ValueError as error:
            assert "stay in every layer" in str(error)
            continue
        met += 1
        for seed in range(3):
            assert_holds(allocated(structure, random_scores(budget, seed), budget), structure)
    assert met >= 1


def test_what_stays_names_no_heads_where_none_can_leave() -> None:
    with pytest.raises(
        ValueError,
        match=r"^ratio=0\.99: 1 neuron stay in every layer, so this model allows at most",
    ):
        ALAM().check(budget_of("deepseek_v3", 0.99))


def kept_by_hand(structure: Structure) -> list[tuple[int, int]]:
    """Every (heads, neurons) that a layer of SMALL may keep."""
    heads = [h for h in range(structure.min_heads, 4) if h % structure.multiple_of_heads == 0]
    neurons = [n for n in range(structure.min_neurons, 21) if n % (structure.round_to or 1) == 0]
    return list(product(heads, neurons))


def nearest(
    budget: Budget, allowed: Callable[[tuple[tuple[int, int], ...]], bool], structure: Structure
) -> float:
    """How near to the budget any plan comes that is `allowed`; by trying all."""
    choices = product(kept_by_hand(structure), repeat=2)
    kept = [sum(10 * h + n for h, n in plan) for plan in choices if allowed(plan)]
    return min(abs(budget.total - one - budget.to_remove) for one in kept)


def checked(structure: Structure, budget: Budget) -> bool:
    try:
        structure.check(budget)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "limits",
    [
        {"round_to": 8},
        {"round_to": 8, "min_neurons": 9},
        {"min_neurons": 13},
        {"multiple_of_heads": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("ratio", SMALL_RATIOS)
def test_no_plan_with_the_same_heads_is_nearer(ratio: float, limits: dict[str, int]) -> None:
    budget = Budget(SMALL, ratio)
    tried = 0
    for heads in range(5):
        structure = ALMM(remove_heads=heads, **limits)
        if checked(structure, budget):
            tried += 1
            plan = structure.allocate(small_scores(heads), budget)
            assert_holds(plan, structure)
            best = nearest(
                budget, lambda kept, out=heads: sum(h for h, _ in kept) == 6 - out, structure
            )
            assert off_by(plan, budget) == pytest.approx(best)
    assert tried or ratio >= 0.5


@pytest.mark.parametrize(
    "limits",
    [
        {"round_to": 8},
        {"round_to": 8, "min_heads": 2},
        {"min_neurons": 20},
        {"multiple_of_heads": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("ratio", SMALL_RATIOS)
def test_no_uniform_plan_with_the_same_heads_is_nearer(
    ratio: float, limits: dict[str, int]
) -> None:
    structure = ULUM(**limits)
    budget = Budget(SMALL, ratio)
    if not checked(structure, budget):
        assert ratio > 0.3
        return
    plan = structure.allocate(small_scores(0), budget)
    assert_holds(plan, structure)
    assert plan.layers[0].attention and {len(layer.mlp) for layer in plan.layers} == {
        len(plan.layers[0].mlp)
    }
    heads = len(plan.layers[0].attention)
    best = nearest(budget, lambda kept: kept[0] == kept[1] and kept[0][0] == heads, structure)
    assert off_by(plan, budget) == pytest.approx(best)


@cache
def prefixes(structure: Structure, seed: int) -> set[PruningPlan]:
    """Of the one ranking: the plans of all ratios."""
    return {structure.allocate(small_scores(seed), Budget(SMALL, one / 200)) for one in range(200)}


@pytest.mark.parametrize(
    "limits",
    [{"round_to": 8}, {"min_heads": 2, "min_neurons": 5}, {"multiple_of_heads": 2}],
    ids=str,
)
@pytest.mark.parametrize("ratio", SMALL_RATIOS)
def test_no_prefix_of_the_one_ranking_is_nearer(ratio: float, limits: dict[str, int]) -> None:
    structure = ALAM(**limits)
    budget = Budget(SMALL, ratio)
    if not checked(structure, budget):
        assert ratio > 0.5
        return
    first = [
        one.counts[0] * units.price
        for one, units in zip(structure.limits(SMALL[0]), SMALL[0], strict=True)
    ]
    for seed in range(4):
        plan = structure.allocate(small_scores(seed), budget)
        assert_holds(plan, structure)
        assert off_by(plan, budget) == pytest.approx(
            min(off_by(one, budget) for one in prefixes(structure, seed))
        )
        dearest = 10 * structure.multiple_of_heads
        must_leave = 2 * sum(first)
        assert off_by(plan, budget) <= dearest / 2 or budget.to_remove < must_leave


@pytest.mark.parametrize(("ratio", "first"), [(0.42, range(12, 20)), (0.36, range(4, 20))])
def test_alam_in_blocks_by_hand(ratio: float, first: range) -> None:
    # the best head and block of each layer cost 36; then the ranking goes on with heads at 0 (46, 56), blocks at -0.34
    # (64, 72), heads at -1; the four neurons below are in no block
    up = torch.arange(20.0)
    heads = torch.tensor([[3.0], [2.0], [1.0]])
    plan = ALAM(round_to=8).allocate(
        Scores((Pair(heads, up), Pair(heads, up.flip(0)))), Budget(SMALL, ratio)
    )
    assert plan.layers == (LayerPlan((0, 1), tuple(first)), LayerPlan((0, 1), tuple(range(8))))
