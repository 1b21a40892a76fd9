"""structure=search moves budget around a plan: what moves were measured to do scales the nats of a block's units."""

from dataclasses import replace

import pytest
import torch

from flap.allocation import LayerPlan
from flap.allocation.adaptive import one_ranking
from flap.models import Pair
from flap.search import Search
from flap.search.refine import LIMIT, corrected, neighbours, rescaled
from tests.cases import ARCHITECTURES, RATIOS
from tests.helpers.ratios import assert_meets, budget_of, model_of, random_scores

NATS = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)


def test_by_hand() -> None:
    """Two units have left. Giving the second back saved 3 (2 were expected), taking the third costs 2 (4 were)."""
    nats_U = rescaled(NATS, 2, {1: -3.0, 3: 2.0}, strength=1.0)
    assert nats_U.tolist() == pytest.approx([1.5, 3.0, 3.0, 4.0], rel=1e-6)  # 1.5 of 1 and 2; 0.5 of 4 and 8; no fall
    assert (nats_U.diff() > 0).all()  # what is equal leaves in the order of before


def test_strength_is_a_power_of_the_factor() -> None:
    assert rescaled(NATS, 2, {3: 16.0}, strength=0.5).tolist() == pytest.approx([2.0, 4.0, 8.0, 16.0], rel=1e-6)
    assert rescaled(NATS, 2, {3: 16.0}, strength=0.0).tolist() == pytest.approx(NATS.tolist(), rel=1e-6)


def test_one_measurement_changes_little() -> None:
    """A move that helps where it should cost, or costs far more than expected, is noise beyond LIMIT."""
    assert rescaled(NATS, 0, {1: -5.0}, strength=1.0).tolist() == pytest.approx((NATS / LIMIT).tolist(), rel=1e-6)
    assert rescaled(NATS, 0, {1: 1e9}, strength=1.0).tolist() == pytest.approx((NATS * LIMIT).tolist(), rel=1e-6)
    assert rescaled(torch.zeros(3).double(), 1, {0: -1.0, 2: 1.0}, strength=1.0).tolist() == [0.0] * 3


def test_neighbours_give_back_and_take_one_step_of_a_block() -> None:
    scores = random_scores(budget_of("llama-gqa", 0.5)).layers[0]
    lowest = scores.mlp.argsort().tolist()
    plan = LayerPlan((0, 1, 2, 3), tuple(sorted(lowest[10:])))
    trials = neighbours(scores, plan, step=0.1)
    assert [(trial.block, trial.removed) for trial in trials] == [("attention", 1), ("mlp", 4), ("mlp", 16)]
    assert trials[0].plan.mlp == plan.mlp
    assert [trial.plan.attention for trial in trials[1:]] == [(0, 1, 2, 3)] * 2
    assert set(lowest[16:]) == set(trials[2].plan.mlp)


def test_no_neighbour_takes_the_last_unit() -> None:
    trials = neighbours(Pair(torch.rand(2, 4), torch.rand(3)), LayerPlan((1,), (2,)), step=0.0625)
    assert [(trial.block, trial.removed) for trial in trials] == [("attention", 0), ("mlp", 1)]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_budget_moves_to_where_it_was_measured_to_matter(architecture: str, ratio: float) -> None:
    """All blocks were thought alike; around that plan, layer 1's losses are found to cost three times as much."""
    budget, structure = budget_of(architecture, ratio), Search(rounds=1, step=0.25)
    scores = random_scores(budget)
    pairs = zip(scores.layers, budget.layers, strict=True)
    alone = (tuple(0.01 * trial.removed for trial in structure.trials(*pair)) for pair in pairs)
    nats = structure.in_nats(replace(scores, divergences=tuple(alone)), budget)
    plan = one_ranking(structure, nats, budget)
    trials = [neighbours(*pair, structure.step) for pair in zip(scores.layers, plan.layers, strict=True)]

    def found(i: int, block: str, removed: int) -> float:
        left = getattr(budget.layers[i], block).count - len(getattr(plan.layers[i], block))
        return 1.0 + 0.01 * (removed - left) * (3 if i == 1 else 1)

    around = [[(trial, found(i, trial.block, trial.removed)) for trial in trials[i]] for i in range(4)]
    moved = one_ranking(structure, corrected(nats, plan, 1.0, around, budget, 1.0), budget)
    assert_meets(moved, model_of(architecture), ratio)
    before, after = (
        sum(len(kept) * units.price for kept, units in zip(one.layers[1], budget.layers[1], strict=True))
        for one in (plan, moved)
    )
    assert after > before
    same = one_ranking(structure, corrected(nats, plan, 1.0, around, budget, 0.0), budget)
    assert same == plan
