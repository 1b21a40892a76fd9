"""structure=search: measured divergences become nats per unit, and the cheapest units are removed first."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from flap.method.allocation import Budget, LayerPlan, PruningPlan, Units
from flap.method.importance import Scores
from flap.method.search import Search
from flap.method.search.search import removal_counts, spread, spread_by_rank
from flap.models import Pair
from tests.helpers.ratios import allocated, budget_of, random_scores


def test_by_hand() -> None:
    """Scores 1, 1, 2, 4 and two units measured at 0.2, three at 1.0: half of 0.2 each, 0.8, and 0.8 · 4/2 beyond."""
    nats_U = spread(torch.tensor([4.0, 1.0, 2.0, 1.0]), {2: 0.2, 3: 1.0})
    assert nats_U.tolist() == pytest.approx([1.6, 0.1, 0.8, 0.1], rel=1e-6)


def test_a_later_unit_is_never_cheaper() -> None:
    """Three units measured at 0.9 and 1.0 after one: the envelope has 1/3 each for the first three."""
    nats_U = spread(torch.tensor([1.0, 1.0, 1.0, 50.0]), {1: 0.9, 3: 1.0})
    assert nats_U[:3].tolist() == pytest.approx([1 / 3] * 3, rel=1e-6)
    assert nats_U.argsort().tolist() == [
        2,
        1,
        0,
        3,
    ]  # of equals the last one leaves first, as `highest` has it


@pytest.mark.parametrize("scores", [[0.0] * 6, [1.0] * 6, [0.0, 0.0, 0.0, 1e30, 1.0, 2.0]])
@pytest.mark.parametrize("measured", [{}, {2: 0.0}, {2: 0.5, 4: 0.1}])
def test_it_is_finite_and_keeps_the_ranking(
    scores: list[float], measured: dict[int, float]
) -> None:
    nats_U = spread(torch.tensor(scores), measured)
    assert torch.isfinite(nats_U).all() and (nats_U >= 0).all()
    order = torch.tensor(scores).argsort(descending=True, stable=True).flip(0)
    assert (nats_U[order].diff() > 0).all()


def test_each_block_is_measured_alone_at_each_level() -> None:
    scores = random_scores(budget_of("llama-gqa", 0.5))
    trials = Search(levels=[0.25, 0.5]).trials(
        scores.layers[1], budget_of("llama-gqa", 0.5).layers[1]
    )
    assert [tuple(map(len, trial)) for trial in trials] == [(3, 56), (2, 56), (4, 42), (4, 28)]
    lost = set(range(56)) - set(trials[2].mlp)
    assert trials[2].attention == (0, 1, 2, 3)
    assert lost == set(scores.layers[1].mlp.argsort()[:14].tolist())
    without_worst = sorted(scores.layers[1].attention.sum(1).argsort()[1:].tolist())
    assert trials[0] == LayerPlan(tuple(without_worst), tuple(range(56)))


def test_levels_are_rounded_to_units_of_which_one_leaves_and_one_stays_at_least() -> None:
    assert removal_counts([0.2, 0.45, 0.55], 4) == [1, 2]
    assert removal_counts([0.125, 0.5, 0.9], 3) == [2]


def test_neurons_of_one_rank_share_what_was_measured() -> None:
    """Two experts of three neurons; a rank costs the mean of its neurons."""
    score_I = torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0, 9.0])
    nats_I = spread_by_rank(score_I, {1: 0.4, 2: 1.0}, experts=2)
    # ranks from the lowest: (1 + 3) / 2, (2 + 4) / 2, (5 + 9) / 2
    assert nats_I.tolist() == pytest.approx([0.4, 1.4, 0.6, 0.6, 0.4, 1.4], rel=1e-6)


# Two layers of eight heads at 10 and forty neurons at 3; a head has one channel.
BUDGET = Budget((Pair(Units(8, 10), Units(40, 3)),) * 2, 0.5)


def small_scores(seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        (torch.rand(8, 1, generator=generator), torch.rand(40, generator=generator))
        for _ in range(2)
    ]
    return Scores(tuple(Pair(*pair) for pair in pairs))


class Known:
    """A measure of known nats: a unit that leaves costs its score times a factor of its block, whatever else leaves."""

    def __init__(self, scores: Scores, factors: list[Pair[float]]) -> None:
        self.cost = [
            Pair([factor.attention * one for one in layer.attention.flatten().tolist()],
                 [factor.mlp * one for one in layer.mlp.tolist()])
            for layer, factor in zip(scores.layers, factors, strict=True)
        ]  # fmt: skip

    def __call__(self, plans: Sequence[PruningPlan], num_tokens: int) -> list[float]:
        assert num_tokens == 300
        return [self.nats(plan) for plan in plans]

    def nats(self, plan: PruningPlan) -> float:
        pairs = [zip(*pair, strict=True) for pair in zip(self.cost, plan.layers, strict=True)]
        return math.fsum(
            one
            for pair in pairs
            for costs, kept in pair
            for u, one in enumerate(costs)
            if u not in kept
        )

    def cheapest(self, to_keep: float) -> PruningPlan:
        """The best unit of each block, then the units of most nats per parameter, as many as are nearest to this."""
        units = [
            (one / prices.price, prices.price, (i, block, u), one == max(costs))
            for i, pair in enumerate(self.cost)
            for block, costs, prices in zip(Pair._fields, pair, BUDGET.layers[i], strict=True)
            for u, one in enumerate(costs)
        ]
        units.sort(key=lambda unit: (not unit[3], -unit[0]))
        totals = list(accumulate(price for _, price, _, _ in units))
        size = min(range(4, len(units) + 1), key=lambda size: abs(totals[size - 1] - to_keep))
        kept = {name for _, _, name, _ in units[:size]}
        layers = [
            [tuple(u for u in range(40) if (i, block, u) in kept) for block in Pair._fields]
            for i in range(2)
        ]
        return PruningPlan(tuple(LayerPlan(*layer) for layer in layers))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_where_nats_add_up_the_units_of_least_nats_per_parameter_leave(
    seed: int, ratio: float
) -> None:
    """Whatever the scores' scale in each block."""
    scores = small_scores(seed)
    budget = replace(BUDGET, ratio=ratio)
    known = Known(scores, [Pair(9.0, 0.2), Pair(1.0, 3.0)])
    plan = allocated(Search(tokens=300), scores, budget, known)
    assert plan == known.cheapest(budget.total - budget.to_remove)


@pytest.mark.parametrize("levels", [[0.125], [0.01, 0.02], [0.99]])
@pytest.mark.parametrize("units", range(2, 9))
def test_every_block_of_more_than_one_unit_is_tried(levels: list[float], units: int) -> None:
    counts = removal_counts(levels, units)
    assert counts and all(1 <= count < units for count in counts)
    assert removal_counts(levels, 1) == []


@pytest.mark.parametrize(("chosen", "removed"), [(2, [2, 4]), (6, [2]), (7, [1]), (8, [])])
def test_a_trial_leaves_as_many_experts_as_a_token_is_sent_to(
    chosen: int, removed: list[int]
) -> None:
    units = Pair(Units(4, 10), Units(8, 100, fewest=chosen, unit="expert", channels=24))
    assert Search(levels=[0.25, 0.5]).removals(units).mlp == removed
