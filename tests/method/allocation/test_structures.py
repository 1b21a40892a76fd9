"""Every structure meets the ratio to within one unit and empties no layer."""

from collections import Counter

import pytest

from flap.method.allocation import LayerPlan
from tests.cases import ARCHITECTURES, MIXTURES, RATIOS, STRUCTURES
from tests.helpers.ratios import allocated, assert_meets, budget_of, model_of, random_scores


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ratio_is_met_and_no_layer_is_empty(
    architecture: str, ratio: float, structure: str
) -> None:
    budget = budget_of(architecture, ratio)
    for seed in range(5):
        plan = allocated(STRUCTURES[structure](), random_scores(budget, seed), budget)
        assert_meets(plan, model_of(architecture), ratio)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ratio_zero_keeps_everything(architecture: str, structure: str) -> None:
    budget = budget_of(architecture, 0.0)
    everything = LayerPlan(tuple(range(budget.layers[0].attention.count)), tuple(range(56)))
    assert (
        allocated(STRUCTURES[structure](), random_scores(budget), budget).layers
        == (everything,) * 4
    )


@pytest.mark.parametrize(("architecture", "most"), [("llama-mha", "0.917"), ("llama-gqa", "0.858")])
def test_ratio_that_would_empty_a_layer_names_the_highest(architecture: str, most: str) -> None:
    for structure in STRUCTURES.values():
        with pytest.raises(
            ValueError, match=rf"ratio=0\.95: 1 KV head and 1 neuron stay .* at most {most}"
        ):
            structure().check(budget_of(architecture, 0.95))
    budget = budget_of(architecture, float(most))
    for structure in STRUCTURES.values():
        plan = allocated(structure(), random_scores(budget), budget)
        assert_meets(plan, model_of(architecture), float(most))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("ratio", (0.0, *RATIOS))
@pytest.mark.parametrize("architecture", MIXTURES)
def test_every_expert_of_a_layer_keeps_as_many_neurons(
    architecture: str, ratio: float, structure: str
) -> None:
    budget = budget_of(architecture, ratio)
    plan = allocated(STRUCTURES[structure](), random_scores(budget), budget)
    for layer, prices in zip(plan.layers, budget.layers, strict=True):
        assert list(layer.mlp) == sorted(set(layer.mlp)) and layer.attention
        kept_by_expert = Counter(neuron // prices.mlp.count for neuron in layer.mlp)
        assert (
            sorted(kept_by_expert) == list(range(prices.mlp.members))
            and len(set(kept_by_expert.values())) == 1
        )
    unit = max(units.price for layer in budget.layers for units in layer)
    assert abs(budget.total - budget.kept(plan) - ratio * budget.total) <= unit
