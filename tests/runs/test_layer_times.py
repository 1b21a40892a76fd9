"""Times of requests by width become bounds: what the table says at each width, and never a time that falls."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from flap.allocation import ALAM, Budget, PruningPlan, Structure, price
from flap.config import TargetConfig
from flap.evaluation import Efficiency
from flap.models import Pair, PlacedModel, Resident, adapt
from flap.runs.layer_times import LayerTimes, narrowed, rising
from flap.search import Search
from flap.storage import Cache
from tests.allocation.test_toy import TOY_LAYERS, TOY_SCORES
from tests.cases import random_model, tiny_model, tokens
from tests.compression.test_constants import grouped
from tests.helpers.ratios import budget_of

REQUEST = Efficiency(batch_size=2, prefill_len=8, decode_len=3, repeats=1)
# Two layers of two heads and four neurons: attention is timed at 1 and 2 heads, an MLP at 1, 2, 3 and 4.
TABLE = [
    [[90.0, 60.0], [100.0, 70.0]],
    [[60.0, 40.0], [70.0, 45.0], [80.0, 50.0], [100.0, 70.0]],
]


def of(budget: Budget, structure: Structure | None = None) -> LayerTimes:
    return LayerTimes(budget, REQUEST, structure or ALAM(), Cache(Path(), enabled=False), {})


def toy() -> LayerTimes:
    return of(Budget(TOY_LAYERS, 0.0))


def test_by_hand() -> None:
    latency, speed = toy().bounds(TargetConfig(latency_ms=85, tokens_per_second=100), TABLE)
    assert latency.values([Pair(2, 4)] * 2) == {"asked": 85, "dense": 100, "realised": 100}
    assert latency.cost([Pair(1, 4)] * 2) == 90 and latency.cost([Pair(2, 2)] * 2) == 70
    assert latency.cost([Pair(1, 4), Pair(2, 3)]) == 100 - 5 - 10
    assert latency.cost([Pair(2, 0), Pair(2, 1)]) == 60  # below the least measured width nothing is gained
    assert speed.cost([Pair(1, 1)] * 2) == 30 and speed.values([Pair(2, 4)] * 2)["dense"] == pytest.approx(
        1000 * 6 / 70
    )


def test_a_plan_is_as_fast_as_was_asked() -> None:
    budget = Budget(TOY_LAYERS, 0.0)
    budget = budget.within(toy().bounds(TargetConfig(latency_ms=85, tokens_per_second=100), TABLE))
    ALAM().check(budget)
    plan = ALAM().allocate(TOY_SCORES, budget)
    values = {bound.target: bound.values(budget.widths(plan)) for bound in budget.bounds}
    assert 75 < values["latency_ms"]["realised"] <= 85
    assert values["tokens_per_second"]["realised"] >= 100


def test_what_is_too_fast_names_the_fastest() -> None:
    budget = Budget(TOY_LAYERS, 0.0)
    for target, line in (
        (TargetConfig(latency_ms=49), r"target\.latency_ms=49: 1 KV head and 1 neuron stay .* at least 50$"),
        (TargetConfig(tokens_per_second=201), r"target\.tokens_per_second=201: .* at most 200$"),
    ):
        with pytest.raises(ValueError, match=line):
            ALAM().check(budget.within(toy().bounds(target, TABLE)))


def test_noise_does_not_make_a_wider_block_faster() -> None:
    assert rising(np.array([1.0, 3.0, 2.0, 4.0])).tolist() == [1.0, 2.5, 2.5, 4.0]
    assert rising(np.array([1.0, 2.0, 3.0])).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("architecture", ["llama-gqa", "mixtral", "qwen3_moe"])
def test_every_block_is_timed_at_its_widths(architecture: str) -> None:
    budget = budget_of(architecture, 0.0)
    layer_times = of(budget, ALAM(round_to=8))
    table = layer_times.measure(Resident(tiny_model(architecture)))
    neurons = {
        "llama-gqa": [[8, 16, 32, 40, 56]],
        "mixtral": [[8, 16, 24]],
        "qwen3_moe": [[8, 16, 24], [8, 16, 32, 40, 56]],
    }
    widths = [group.widths(ALAM(round_to=8)) for group in layer_times.groups]
    assert widths[0] == [1, 2, 3, 4] and widths[1:] == neurons[architecture]
    assert sorted((group.block, i) for group in layer_times.groups for i in group.layers) == sorted(
        (block, i) for block in Pair._fields for i in range(len(budget.layers))
    )
    for times, group in zip(table, widths, strict=True):
        assert len(times) == len(group) and all(latency > decoding > 0 for latency, decoding in times)
    [bound] = layer_times.bounds(TargetConfig(latency_ms=1e9), table)
    assert bound.values(budget.dense_widths)["dense"] == pytest.approx(table[0][-1][0])
    assert all((cost_K.diff() >= 0).all() for costs in bound.costs for cost_K in costs)


def test_a_model_without_whole_layers_is_timed_without_them() -> None:
    model = tiny_model("llama-gqa")
    widths = [Pair(4, 56), Pair(0, 0), Pair(4, 8), Pair(4, 56)]
    other = narrowed(model, (False, False), budget_of("llama-gqa", 0.0), widths, [1])
    assert [layer.mlp.down_proj.in_features for layer in other.model.layers] == [56, 8, 56]
    assert (other.config.num_hidden_layers, model.config.num_hidden_layers, len(model.model.layers)) == (3, 4, 4)
    assert other(tokens()).logits.shape == model(tokens()).logits.shape


def test_a_narrower_model_shares_what_is_not_narrower() -> None:
    model = tiny_model("llama-gqa")
    before = copy.deepcopy(model.state_dict())
    budget = budget_of("llama-gqa", 0.0)
    other = narrowed(model, (False, False), budget, [Pair(4, 56), Pair(2, 56), Pair(4, 8), Pair(4, 56)])
    assert [tuple(block.num_units for block in adapt(other).blocks(i)) for i in range(4)] == [
        (4, 56),
        (2, 56),
        (4, 8),
        (4, 56),
    ]
    assert other.model.layers[0].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.isfinite(other(tokens()).logits).all()


def test_experts_are_timed_with_constants_in_their_places(tmp_path: Path) -> None:
    """And what was timed is not taken for the time of neurons. The router of this model chooses among groups."""
    made = []

    class Counted(LayerTimes):
        def _measure_widths(self, *_: object) -> list[list[float]]:
            made.append(self.units)
            return [[1.0, 1.0]]

    model, units = random_model(grouped()), (True, True)
    budget = price(adapt(model, *units), 0.0)
    widths = [layer._replace(mlp=2) for layer in budget.dense_widths]
    experts = narrowed(model, units, budget, widths).model.layers[2].mlp.experts
    assert (experts.num_experts, len(experts.constants)) == (2, 4)
    for one in (units, (False, False)) * 2:
        Counted(budget, REQUEST, ALAM(), Cache(tmp_path), {}, one).measure_widths(Resident(model), [widths])
    assert made == [units, (False, False)]


def test_no_room_is_one_line() -> None:
    class Full(Resident):
        def fits_in_memory(self, beside_bytes: int = 0) -> bool:
            return False

    full: PlacedModel = Full(tiny_model("llama-gqa"))
    with pytest.raises(
        ValueError, match=r"model\.device=cpu: expected a device with .* free for .* with a target in time$"
    ):
        of(budget_of("llama-gqa", 0.0)).measure(full)


def test_a_block_that_may_leave_is_timed_without_units() -> None:
    budget, structure = budget_of("llama-gqa", 0.0), ALAM(min_heads=0, min_neurons=0)
    layer_times = of(budget, structure)
    assert [group.widths(structure) for group in layer_times.groups] == [[0, 1, 2, 3, 4], [0, 7, 14, 28, 42, 56]]
    assert [len(times) for times in layer_times.measure(Resident(tiny_model("llama-gqa")))] == [5, 6]


def test_a_layer_that_leaves_takes_no_time() -> None:
    """Which the least width of its blocks does, and what else a layer does. The first layer alone takes 30 ms."""
    budget, search = Budget(TOY_LAYERS, 0.0), Search(layers=True)
    times = of(budget, search)
    [bound] = times.bounds(TargetConfig(latency_ms=35), [*TABLE, [[30.0, 20.0]]])
    assert bound.cost([Pair(2, 4), Pair(0, 0)]) == 30 and bound.cost([Pair(1, 4)] * 2) == 90
    search.check(budget.within((bound,)))
    [slower] = times.bounds(TargetConfig(latency_ms=35), [*TABLE, [[99.0, 20.0]]])
    assert slower.cost([Pair(2, 4), Pair(0, 0)]) == 75  # noise: not more than at the least widths
    table = of(budget_of("llama-gqa", 0.0), search).measure(Resident(tiny_model("llama-gqa")))
    assert [len(group) for group in table] == [4, 5, 1]


def test_a_measured_plan_corrects_what_widths_save() -> None:
    [bound] = toy().bounds(TargetConfig(latency_ms=85), TABLE)
    widths = [Pair(1, 4), Pair(2, 3)]  # 15 of 100 saved
    [half] = toy().corrected([bound], widths, [[200.0, 1.0], [185.0, 1.0]])  # on a slower machine: 7.5 % saved
    assert half.dense == pytest.approx(100) and half.cost(widths) == pytest.approx(92.5)
    assert half.cost([Pair(1, 4)] * 2) == pytest.approx(95)
    [little] = toy().corrected([bound], widths, [[100.0, 1.0], [110.0, 1.0]])
    assert little.cost(widths) == pytest.approx(100 - 15 / 4)  # one measurement has a limited say


def test_a_plan_is_made_again_until_its_times_agree() -> None:
    class Slower(LayerTimes):
        """A device on which widths save half of what the table says."""

        def measure_widths(self, model: object, several: list) -> list[list[float]]:
            [bound] = self.bounds(TargetConfig(latency_ms=1), TABLE)
            return [[100.0, 1.0], [50 + bound.cost(several[0]) / 2, 1.0]]

    dense = Budget(TOY_LAYERS, 0.0)
    times = Slower(dense, REQUEST, ALAM(), Cache(Path(), enabled=False), {})
    made: list[PruningPlan] = []

    def plan_of(budget: Budget) -> PruningPlan:
        made.append(ALAM().allocate(TOY_SCORES, budget))
        return made[-1]

    budget, plan = times.settle(None, dense.within(times.bounds(TargetConfig(latency_ms=85), TABLE)), plan_of)
    assert len(made) == 2 and made[0] != plan
    [[dense_ms, _], [measured, _]] = times.measure_widths(None, [budget.widths(plan)])
    assert measured == pytest.approx(budget.bounds[0].cost(budget.widths(plan))) and measured <= 85 < dense_ms
