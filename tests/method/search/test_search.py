"""structure=search prunes the heads and neurons that cost the fewest nats per parameter.

Nats are the unit of the KL divergence from the dense model. The search measures this divergence in
trials. A trial prunes the attention or the MLP of one layer, and the measured divergence is divided
among the removed heads or neurons.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from flap.method.allocation import Budget, LayerPlan, PruningPlan, Units
from flap.method.importance import Scores
from flap.method.search import Search
from flap.method.search.search import removal_counts, spread, spread_by_rank
from flap.models import Pair
from tests.helpers.ratios import allocated, budget_of, random_scores


def test_by_hand() -> None:
    """The nats that trials cost are divided among the removed units (heads or neurons).

    A trial removes the units with the lowest scores. Here, the scores are 1, 1, 2 and 4, from the
    lowest. A trial that removes two units costs 0.2 nats, so each of these units gets 0.1 nats. A
    trial that removes three units costs 1.0 nats, so the third unit gets 0.8 nats. No trial removes
    the fourth unit. Its score is 4 / 2 times the score of the third unit, so it gets 0.8 · 4 / 2
    nats.
    """
    score_U = torch.tensor([4.0, 1.0, 2.0, 1.0])
    nats_U = spread(score_U, {2: 0.2, 3: 1.0})
    assert nats_U.tolist() == pytest.approx([1.6, 0.1, 0.8, 0.1], rel=1e-6)


def test_a_later_unit_is_never_cheaper() -> None:
    """The lower convex envelope of the measured costs gives each of three equal units 1/3 nats.

    Removing one unit costs 0.9 nats, and removing three units costs 1.0 nats.
    """
    score_U = torch.tensor([1.0, 1.0, 1.0, 50.0])
    nats_U = spread(score_U, {1: 0.9, 3: 1.0})
    assert nats_U[:3].tolist() == pytest.approx([1 / 3] * 3, rel=1e-6)
    # Among units with equal scores, the last unit is removed first, as in the function `highest`.
    assert nats_U.argsort().tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize(
    "scores",
    [
        [0.0] * 6,
        [1.0] * 6,
        [0.0, 0.0, 0.0, 1e30, 1.0, 2.0],
    ],
)
@pytest.mark.parametrize("measured", [{}, {2: 0.0}, {2: 0.5, 4: 0.1}])
def test_nats_are_finite_and_keep_the_ranking(
    scores: list[float], measured: dict[int, float]
) -> None:
    nats_U = spread(torch.tensor(scores), measured)
    assert torch.isfinite(nats_U).all()
    assert (nats_U >= 0).all()
    order_U = torch.tensor(scores).argsort(descending=True, stable=True).flip(0)
    assert (nats_U[order_U].diff() > 0).all()


def test_each_block_is_measured_alone_at_each_level() -> None:
    budget = budget_of("llama-gqa", 0.5)
    scores = random_scores(budget).layers[1]
    search = Search(levels=[0.25, 0.5])
    trials = search.trials(scores, budget.layers[1])
    assert [len(trial.attention) for trial in trials] == [3, 2, 4, 4]
    assert [len(trial.mlp) for trial in trials] == [56, 56, 42, 28]

    # The first trial removes the head with the lowest score.
    one_head_less = trials[0]
    better_heads = scores.attention.sum(1).argsort()[1:]
    assert one_head_less.attention == tuple(sorted(better_heads.tolist()))
    assert one_head_less.mlp == tuple(range(56))

    # The third trial removes the quarter of the neurons with the lowest scores.
    quarter_less = trials[2]
    lowest_neurons = scores.mlp.argsort()[:14]
    assert quarter_less.attention == (0, 1, 2, 3)
    assert set(range(56)) - set(quarter_less.mlp) == set(lowest_neurons.tolist())


def test_levels_are_rounded_to_units_of_which_one_leaves_and_one_stays_at_least() -> None:
    assert removal_counts([0.2, 0.45, 0.55], 4) == [1, 2]
    assert removal_counts([0.125, 0.5, 0.9], 3) == [2]


def test_neurons_of_one_rank_have_the_same_nats() -> None:
    """Two experts have three neurons each, which are ranked by their scores within each expert.

    A unit consists of the two neurons with the same rank, and its score is the mean of their
    scores. From the lowest rank, the scores of units are (1 + 3) / 2, (2 + 4) / 2 and (5 + 9) / 2.
    """
    score_I = torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0, 9.0])
    nats_I = spread_by_rank(score_I, {1: 0.4, 2: 1.0}, experts=2)
    assert nats_I.tolist() == pytest.approx([0.4, 1.4, 0.6, 0.6, 0.4, 1.4], rel=1e-6)


# Two layers, each with eight heads of 10 parameters each and forty neurons of 3 parameters each.
# Each head has one channel.
LAYER = Pair(Units(8, 10), Units(40, 3))
BUDGET = Budget((LAYER, LAYER), 0.5)


def small_scores(seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(2):
        heads = torch.rand(8, 1, generator=generator)
        layers.append(Pair(heads, torch.rand(40, generator=generator)))
    return Scores(tuple(layers))


class Unit(NamedTuple):
    layer: int
    block: str
    number: int
    nats: float
    price: int
    best: bool  # whether this unit has the most nats in its block


def units_of_block(layer: int, block: str, nats_U: Tensor) -> list[Unit]:
    price = getattr(LAYER, block).price
    units = []
    for number, nats in enumerate(nats_U.tolist()):
        best = nats == float(nats_U.max())
        units.append(Unit(layer, block, number, nats, price, best))
    return units


class KnownNats:
    """A replacement for the measurement of divergences, with known nats for each removed unit.

    A removed unit costs its score times a factor of its block (the attention or MLP of a layer),
    whatever other units are removed.
    """

    def __init__(self, scores: Scores, factors: list[Pair[float]]) -> None:
        self.units: list[Unit] = []
        for i, (layer, factor) in enumerate(zip(scores.layers, factors, strict=True)):
            nats_of_heads_U = factor.attention * layer.attention.flatten().double()
            self.units += units_of_block(i, "attention", nats_of_heads_U)
            nats_of_neurons_U = factor.mlp * layer.mlp.double()
            self.units += units_of_block(i, "mlp", nats_of_neurons_U)

    def __call__(self, plans: Sequence[PruningPlan], num_tokens: int) -> list[float]:
        assert num_tokens == 300
        return [self.nats(plan) for plan in plans]

    def nats(self, plan: PruningPlan) -> float:
        removed = []
        for unit in self.units:
            if unit.number not in getattr(plan.layers[unit.layer], unit.block):
                removed.append(unit.nats)
        return math.fsum(removed)

    def cheapest(self, to_keep: float) -> PruningPlan:
        """Return the plan that keeps the units with the most nats per parameter.

        The plan always keeps the best unit of each block. The number of parameters of all kept
        units is as near as possible to `to_keep`.
        """
        order = sorted(self.units, key=lambda unit: (not unit.best, -unit.nats / unit.price))
        totals = list(accumulate(unit.price for unit in order))
        sizes = range(4, len(order) + 1)
        size = min(sizes, key=lambda size: abs(totals[size - 1] - to_keep))

        kept: dict[tuple[int, str], list[int]] = defaultdict(list)
        for unit in order[:size]:
            kept[unit.layer, unit.block].append(unit.number)
        layers = []
        for i in range(2):
            heads = sorted(kept[i, "attention"])
            neurons = sorted(kept[i, "mlp"])
            layers.append(LayerPlan(tuple(heads), tuple(neurons)))
        return PruningPlan(tuple(layers))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_if_nats_add_up_the_units_of_least_nats_per_parameter_leave(
    seed: int, ratio: float
) -> None:
    """The search finds the cheapest plan, although the blocks have scores of different scales."""
    scores = small_scores(seed)
    budget = replace(BUDGET, ratio=ratio)
    known = KnownNats(scores, [Pair(9.0, 0.2), Pair(1.0, 3.0)])
    plan = allocated(Search(tokens=300), scores, budget, known)
    assert plan == known.cheapest(budget.total - budget.to_remove)


@pytest.mark.parametrize("levels", [[0.125], [0.01, 0.02], [0.99]])
@pytest.mark.parametrize("units", range(2, 9))
def test_every_block_of_more_than_one_unit_is_tried(levels: list[float], units: int) -> None:
    counts = removal_counts(levels, units)
    assert counts
    assert all(1 <= count < units for count in counts)
    assert removal_counts(levels, 1) == []


@pytest.mark.parametrize(
    ("chosen", "removed"),
    [
        (2, [2, 4]),
        (6, [2]),
        (7, [1]),
        (8, []),
    ],
)
def test_a_trial_leaves_as_many_experts_as_a_token_is_sent_to(
    chosen: int, removed: list[int]
) -> None:
    experts = Units(8, 100, fewest=chosen, unit="expert", channels=24)
    removals = Search(levels=[0.25, 0.5]).removals(Pair(Units(4, 10), experts))
    assert removals.mlp == removed
