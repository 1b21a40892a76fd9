"""Every structure removes the requested share of parameters, to within one head or neuron.

A structure chooses the heads and neurons to remove from each layer, given their scores. No layer
loses all its heads or all its neurons.
"""

from collections import Counter

import pytest

from flap.method.allocation import LayerPlan
from tests.cases import ARCHITECTURES, MIXTURES, RATIOS, STRUCTURES
from tests.helpers.marks import quick
from tests.helpers.ratios import allocated, assert_meets, budget_of, model_of, random_scores


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("architecture", quick(3, ARCHITECTURES))
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
    heads = budget.layers[0].attention.count
    everything = LayerPlan(tuple(range(heads)), tuple(range(56)))
    plan = allocated(STRUCTURES[structure](), random_scores(budget), budget)
    assert plan.layers == (everything,) * 4


@pytest.mark.parametrize(
    ("architecture", "most"),
    [
        ("llama-mha", "0.917"),
        ("llama-gqa", "0.858"),
    ],
)
def test_a_ratio_that_would_empty_a_layer_names_the_highest(architecture: str, most: str) -> None:
    refusal = rf"ratio=0\.95: 1 KV head and 1 neuron stay .* at most {most}"
    for structure in STRUCTURES.values():
        with pytest.raises(ValueError, match=refusal):
            structure().check(budget_of(architecture, 0.95))

    budget = budget_of(architecture, float(most))
    for structure in STRUCTURES.values():
        plan = allocated(structure(), random_scores(budget), budget)
        assert_meets(plan, model_of(architecture), float(most))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("ratio", (0.0, *RATIOS))
@pytest.mark.parametrize("architecture", MIXTURES)
def test_every_expert_of_a_layer_keeps_the_same_number_of_neurons(
    architecture: str, ratio: float, structure: str
) -> None:
    budget = budget_of(architecture, ratio)
    plan = allocated(STRUCTURES[structure](), random_scores(budget), budget)
    for layer, units in zip(plan.layers, budget.layers, strict=True):
        assert layer.attention
        assert list(layer.mlp) == sorted(set(layer.mlp))
        kept_by_expert = Counter(neuron // units.mlp.count for neuron in layer.mlp)
        assert kept_by_expert.keys() == set(range(units.mlp.members))
        assert len(set(kept_by_expert.values())) == 1
    largest = max(units.price for layer in budget.layers for units in layer)
    removed = budget.total - budget.kept(plan)
    assert abs(removed - ratio * budget.total) <= largest
