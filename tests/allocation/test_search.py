"""structure=search: measured divergences become nats per unit, and the cheapest nats leave first."""

import pytest
import torch

from flap.allocation import LayerPlan, Search
from flap.allocation.search import spread
from flap.importance import Scores
from tests.allocation.oracle import assert_meets, budget_of, model_of, random_scores
from tests.cases import ARCHITECTURES, RATIOS


def test_by_hand() -> None:
    """Scores 1, 1, 2, 4 and two units measured at 0.2, three at 1.0: half of 0.2 each, 0.8, and 0.8 · 4/2 beyond."""
    nats_U = spread(torch.tensor([4.0, 1.0, 2.0, 1.0]), {2: 0.2, 3: 1.0})
    assert nats_U.tolist() == pytest.approx([1.6, 0.1, 0.8, 0.1], rel=1e-6)


def test_a_later_unit_is_never_cheaper() -> None:
    """Three units measured at 0.9 and 1.0 after one: the envelope has 1/3 each for the first three."""
    nats_U = spread(torch.tensor([1.0, 1.0, 1.0, 50.0]), {1: 0.9, 3: 1.0})
    assert nats_U[:3].tolist() == pytest.approx([1 / 3] * 3, rel=1e-6)
    assert nats_U.argsort().tolist() == [2, 1, 0, 3]  # of equals the last one leaves first, as `highest` has it


@pytest.mark.parametrize("scores", [[0.0] * 6, [1.0] * 6, [0.0, 0.0, 0.0, 1e30, 1.0, 2.0]])
@pytest.mark.parametrize("measured", [{}, {2: 0.0}, {2: 0.5, 4: 0.1}])
def test_it_is_finite_and_keeps_the_ranking(scores: list[float], measured: dict[int, float]) -> None:
    nats_U = spread(torch.tensor(scores), measured)
    assert torch.isfinite(nats_U).all() and (nats_U >= 0).all()
    order = torch.tensor(scores).argsort(descending=True, stable=True).flip(0)
    assert (nats_U[order].diff() > 0).all()


def test_each_block_is_measured_alone_at_each_level() -> None:
    scores = random_scores(budget_of("llama-gqa", 0.5))
    trials = Search(levels=[0.25, 0.5]).trials(scores, 1)
    assert [(trial.block, trial.removed) for trial in trials] == [
        ("attention", 1), ("attention", 2), ("mlp", 14), ("mlp", 28),
    ]  # fmt: skip
    lost = set(range(56)) - set(trials[2].plan.neurons)
    assert trials[2].plan.kv_heads == (0, 1, 2, 3)
    assert lost == set(scores.neurons[1].argsort()[:14].tolist())
    assert trials[0].plan == LayerPlan(
        tuple(sorted(scores.kv_heads[1].sum(1).argsort()[1:].tolist())), tuple(range(56))
    )


def test_levels_that_leave_nothing_or_take_nothing_are_left_out() -> None:
    scores = Scores((torch.rand(3, 2),), (torch.rand(2),))
    trials = Search().trials(scores, 0)
    assert [(trial.block, trial.removed) for trial in trials] == [("attention", 1), ("attention", 2), ("mlp", 1)]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_layer_that_matters_most_keeps_most(architecture: str, ratio: float) -> None:
    budget, structure = budget_of(architecture, ratio), Search()
    scores = random_scores(budget)
    costs = [1.0, 100.0, 1.0, 1.0]
    nats = [[cost * trial.removed for trial in structure.trials(scores, i)] for i, cost in enumerate(costs)]
    plan = structure.allocate(structure.in_nats(scores, nats, budget), budget)
    assert_meets(plan, model_of(architecture), ratio)
    assert len(plan.layers[1].neurons) == max(len(layer.neurons) for layer in plan.layers)
    assert len(plan.layers[1].kv_heads) == max(len(layer.kv_heads) for layer in plan.layers)


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"^structure\.tokens=0: expected a whole number >= 1$"):
        Search(tokens=0)
    for levels in ([], [0.0], [0.5, 1.0]):
        with pytest.raises(ValueError, match=r"^structure\.levels=\[.*\]: expected shares"):
            Search(levels=levels)
    with pytest.raises(ValueError, match=r"^structure\.rounds=-1: expected a whole number >= 0$"):
        Search(rounds=-1)
    for step in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"^structure\.step=.*: expected a share"):
            Search(step=step)


def test_a_model_with_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^structure=search: expected a model without experts"):
        Search().check(budget_of("mixtral", 0.5))
