"""In a plan, every layer respects `min_heads`, `min_neurons`, `multiple_of_heads` and `round_to`.

A plan says which heads and neurons stay. These options limit their numbers in each layer. Of all
plans within these limits that have the same numbers of heads, or that follow the same ranking of
heads and neurons, flap chooses the plan nearest to the budget (the number of parameters to remove).
To check this, the tests compare flap's plan with all these plans.
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
    {"min_neurons": 56},  # the layers have 56 neurons, so no neuron can be removed
    {"min_heads": 2, "min_neurons": 17, "round_to": 8},
    {"multiple_of_heads": 2},
    {"multiple_of_heads": 3},  # layers have 8 or 4 KV heads; neither is a multiple of 3
    {"multiple_of_heads": 2, "min_heads": 3, "round_to": 8},
]
# Two layers, each with three heads of 10 parameters each and twenty neurons of 1 parameter each.
# With round_to=8, a layer keeps 8 or 16 of its twenty neurons. These layers are small enough for
# the tests to try all plans.
SMALL = (Pair(Units(3, 10), Units(20, 1)),) * 2
SMALL_RATIOS = [0.1, 0.17, 0.25, 0.31, 0.38, 0.44, 0.5, 0.57, 0.63]
Width = tuple[int, int]  # the numbers of heads and of neurons that a layer keeps


def small_scores(seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    heads = torch.rand(2, 3, 4, generator=generator)
    neurons = torch.rand(2, 20, generator=generator)
    return Scores(tuple(map(Pair, heads, neurons)))


def missed(plan: PruningPlan, budget: Budget) -> float:
    """Return how far the number of parameters that a plan removes is from the budget."""
    return abs(budget.total - budget.kept(plan) - budget.to_remove)


def assert_kept_to(plan: PruningPlan, structure: Structure) -> None:
    """Check that every layer respects the limits of the structure."""
    for layer in plan.layers:
        assert len(layer.attention) >= structure.min_heads
        assert len(layer.attention) % structure.multiple_of_heads == 0
        assert len(layer.mlp) >= structure.min_neurons
        assert len(layer.mlp) % (structure.round_to or 1) == 0
        assert list(layer.attention) == sorted(set(layer.attention))
        assert list(layer.mlp) == sorted(set(layer.mlp))


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("architecture", ["llama-mha", "llama-gqa-biases"])
def test_every_layer_keeps_to_them(architecture: str, name: str, limits: dict[str, int]) -> None:
    structure = STRUCTURES[name](**limits)
    ratios = 0
    for ratio in (0.1, 0.2, 0.35, 0.5, 0.7):
        budget = budget_of(architecture, ratio)
        try:
            structure.check(budget)
        except ValueError as error:
            assert "stay in every layer" in str(error)
            continue
        ratios += 1
        for seed in range(3):
            plan = allocated(structure, random_scores(budget, seed), budget)
            assert_kept_to(plan, structure)
    assert ratios >= 1


def test_a_refusal_names_no_heads_if_none_can_leave() -> None:
    refusal = r"^ratio=0\.99: 1 neuron stay in every layer, so this model allows at most"
    with pytest.raises(ValueError, match=refusal):
        ALAM().check(budget_of("deepseek_v3", 0.99))


def widths(structure: Structure) -> list[Width]:
    """Return all widths (numbers of heads and of neurons) that a layer of SMALL may have."""
    heads = [h for h in range(structure.min_heads, 4) if h % structure.multiple_of_heads == 0]
    neurons = [n for n in range(structure.min_neurons, 21) if n % (structure.round_to or 1) == 0]
    return list(product(heads, neurons))


def nearest(budget: Budget, allowed: Callable[[Width, Width], bool], structure: Structure) -> float:
    """Return how far the best plan that `allowed` accepts is from the budget, in parameters.

    allowed: whether a plan is accepted, given the widths of its two layers.
    """
    distances = []
    for first, second in product(widths(structure), repeat=2):
        if allowed(first, second):
            kept = 10 * (first[0] + second[0]) + first[1] + second[1]
            distances.append(abs(budget.total - kept - budget.to_remove))
    return min(distances)


def fits(structure: Structure, budget: Budget) -> bool:
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
    numbers = 0
    for removed in range(5):
        structure = ALMM(remove_heads=removed, **limits)
        if not fits(structure, budget):
            continue
        numbers += 1
        plan = structure.allocate(small_scores(removed), budget)
        assert_kept_to(plan, structure)

        def same_heads(first: Width, second: Width, kept: int = 6 - removed) -> bool:
            return first[0] + second[0] == kept

        assert missed(plan, budget) == pytest.approx(nearest(budget, same_heads, structure))
    assert numbers or ratio >= 0.5


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
    if not fits(structure, budget):
        assert ratio > 0.3
        return
    plan = structure.allocate(small_scores(0), budget)
    assert_kept_to(plan, structure)
    first, second = plan.layers
    heads = len(first.attention)
    assert heads
    assert len(first.mlp) == len(second.mlp)

    def uniform(first: Width, second: Width) -> bool:
        return first == second and first[0] == heads

    assert missed(plan, budget) == pytest.approx(nearest(budget, uniform, structure))


@cache
def prefixes(structure: Structure, seed: int) -> set[PruningPlan]:
    """Return the plans of a structure for 200 ratios.

    Each plan keeps the first heads and neurons of a ranking that is the same for all ratios.
    """
    budgets = [Budget(SMALL, percent / 200) for percent in range(200)]
    return {structure.allocate(small_scores(seed), budget) for budget in budgets}


@pytest.mark.parametrize(
    "limits",
    [{"round_to": 8}, {"min_heads": 2, "min_neurons": 5}, {"multiple_of_heads": 2}],
    ids=str,
)
@pytest.mark.parametrize("ratio", SMALL_RATIOS)
def test_no_prefix_of_the_one_ranking_is_nearer(ratio: float, limits: dict[str, int]) -> None:
    structure = ALAM(**limits)
    budget = Budget(SMALL, ratio)
    if not fits(structure, budget):
        assert ratio > 0.5
        return
    # The parameters of heads and neurons beyond the last complete block (of `multiple_of_heads`
    # heads or `round_to` neurons) are always removed.
    must_leave = 0
    for limit, units in zip(structure.limits(SMALL[0]), SMALL[0], strict=True):
        must_leave += 2 * limit.counts[0] * units.price
    largest = 10 * structure.multiple_of_heads
    for seed in range(4):
        plan = structure.allocate(small_scores(seed), budget)
        assert_kept_to(plan, structure)
        best = min(missed(prefix, budget) for prefix in prefixes(structure, seed))
        assert missed(plan, budget) == pytest.approx(best)
        assert missed(plan, budget) <= largest / 2 or budget.to_remove < must_leave


@pytest.mark.parametrize(("ratio", "first"), [(0.42, range(12, 20)), (0.36, range(4, 20))])
def test_alam_in_blocks_by_hand(ratio: float, first: range) -> None:
    """In the ranking, the best head and the best block of neurons of each layer come first.

    A block has 8 neurons. These two heads and two blocks cost 36 together. Then come two heads with
    a score of 0 (the total rises to 46 and 56), two blocks with a score of -0.34 (64 and 72), and
    two heads with a score of -1. The four neurons with the lowest scores of each layer are in no
    block.
    """
    ascending = torch.arange(20.0)
    heads = torch.tensor([[3.0], [2.0], [1.0]])
    scores = Scores((Pair(heads, ascending), Pair(heads, ascending.flip(0))))
    plan = ALAM(round_to=8).allocate(scores, Budget(SMALL, ratio))
    assert plan.layers == (LayerPlan((0, 1), tuple(first)), LayerPlan((0, 1), tuple(range(8))))
