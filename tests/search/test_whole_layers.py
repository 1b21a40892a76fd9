"""Which whole layers leave in a search: those that cost fewest nats, where nothing cheaper can leave in their place."""

from dataclasses import replace
from pathlib import Path

import pytest

from flap.allocation import Biases, Budget, PruningPlan, bounds_of_shapes
from flap.allocation.bounds import within_all
from flap.config import TargetConfig
from flap.models import Pair, adapt
from flap.search import Search
from flap.search.whole_layers import ONLY
from tests.helpers.ratios import budget_of, model_of, random_scores

NATS = [0.0, 0.3, 0.1, 0.2]  # of each layer of the tiny model that leaves alone; the first one cannot


def plan_of(budget: Budget, layers: bool | str, unit: float, whole: list[float] = NATS) -> PruningPlan:
    """The plan where a trial of a block costs so many nats for each removed unit, and a whole layer these."""
    search, scores = Search(layers=layers), random_scores(budget)
    pairs = zip(scores.layers, budget.layers, strict=True)
    nats = [[unit * trial.removed for trial in search.trials(*pair)] for pair in pairs]
    alone = [[one] if i else [] for i, one in enumerate(whole)]
    divergences = tuple(tuple(a + b) for a, b in zip(nats, alone, strict=True))
    return search.allocate(replace(scores, divergences=divergences), budget)


@pytest.mark.parametrize(("ratio", "dropped"), [(0.0, ()), (0.25, (2,)), (0.3, (2,)), (0.5, (2, 3)), (0.9, (1, 2, 3))])
def test_only_whole_layers_leave_in_the_order_of_their_nats(ratio: float, dropped: tuple[int, ...]) -> None:
    plan = plan_of(budget_of("llama-gqa", ratio), ONLY, 1.0)
    assert plan.dropped == dropped
    assert [bool(layer.mlp) for layer in plan.layers] == [i not in dropped for i in range(4)]
    assert all(len(layer.mlp) in (0, 56) and len(layer.attention) in (0, 4) for layer in plan.layers)


@pytest.mark.parametrize("ratio", [0.2, 0.35, 0.6])
def test_layers_leave_beside_units_where_those_cost_more(ratio: float) -> None:
    budget = budget_of("llama-gqa", ratio)
    cheap, dear = plan_of(budget, True, 1e-4), plan_of(budget, True, 1.0)
    assert cheap.dropped == () and cheap == plan_of(budget, False, 1e-4)
    assert dear.dropped == {0.2: (), 0.35: (2,), 0.6: (2, 3)}[ratio]
    largest = max(units.price for layer in budget.layers for units in layer)
    for plan in (cheap, dear):
        assert abs(budget.total - budget.to_remove - budget.kept(plan)) <= largest


def test_a_target_is_met_by_whole_layers() -> None:
    budget = budget_of("llama-gqa", 0.0)
    total = sum(parameter.numel() for parameter in model_of("llama-gqa").parameters())
    for layers in (True, ONLY):
        target = TargetConfig(parameters=total - 1.5 * budget.total / 4)
        bounds = bounds_of_shapes(target, adapt(model_of("llama-gqa")), budget.layers, 4, Biases(True), None)
        bounded = budget.within(bounds)
        plan = plan_of(bounded, layers, 1.0)
        assert within_all(bounds, bounded.widths(plan)) and 2 in plan.dropped
    with pytest.raises(ValueError, match=r"^structure\.layers=only: expected true for target\.parameters, which no"):
        plan_of(budget.within((replace(bounds[0], asked=1.0),)), ONLY, 1.0)


@pytest.mark.parametrize(("layers", "ratio", "least"), [(True, 0.96, "0.964"), (ONLY, 0.75, "0.75")])
def test_what_whole_layers_reach_is_allowed(layers: bool | str, ratio: float, least: str) -> None:
    """All layers but the first may leave; heads and neurons alone reach 0.858, and a quarter of the cache."""
    search, budget = Search(layers=layers), budget_of("llama-gqa", ratio)
    search.check(budget)
    plan = plan_of(budget, layers, 1.0)
    largest = max(units.price for layer in budget.layers for units in layer)
    assert plan.dropped == (1, 2, 3) and abs(budget.kept(plan) - (1 - ratio) * budget.total) <= largest
    with pytest.raises(ValueError, match=f"^ratio=0.99: the first layer stays, so this model allows at most {least}$"):
        search.check(budget_of("llama-gqa", 0.99))
    budget, adapter = budget_of("llama-gqa", 0.0), adapt(model_of("llama-gqa"))

    def within(num_bytes: float) -> Budget:
        target = TargetConfig(kv_cache_bytes=num_bytes)
        return budget.within(bounds_of_shapes(target, adapter, budget.layers, 4, Biases(True), 128))

    of_empty = 3 * 1024  # as if attentions without heads stayed, which keep one channel a token
    smallest = 4 * 2 * 128 * 8 * (1 if layers is True else 4) + of_empty  # the heads of the first layer
    bounded = within(smallest)
    search.check(bounded)
    plan = plan_of(bounded, layers, 1.0)
    assert plan.dropped == (1, 2, 3) and within_all(bounded.bounds, bounded.widths(plan))
    for wrong, one in ((search, within(smallest - 1)), (Search(), within(4 * 8192 - 1))):
        with pytest.raises(
            ValueError, match=r"^target\.kv_cache_bytes=.* stays?.*, so this model allows at least \d+$"
        ):
            wrong.check(one)


def test_runs_of_layers_share_a_map_and_are_written(tmp_path: Path) -> None:
    plan = PruningPlan(tuple(Pair((), ()) if i in (1, 2, 4) else Pair((0,), (0,)) for i in range(5)), dropped=(1, 2, 4))
    assert plan.runs == {2: 1, 4: 4}
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
