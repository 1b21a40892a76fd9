"""structure=middle keeps the outer layers whole, and prunes all middle layers equally."""

import pytest
from transformers import LlamaConfig

from flap.config import TargetConfig
from flap.method.allocation import Biases, Budget, Middle, bounds_of_shapes, price
from flap.models import adapt
from tests.cases import random_model
from tests.helpers.ratios import allocated, assert_meets, budget_of, model_of, random_scores

MIDDLE = Middle(keep_first=1, keep_last=1)


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("architecture", ["llama-mha", "llama-gqa", "llama-gqa-biases"])
def test_the_middle_layers_lose_all_that_the_ratio_asks_for(
    architecture: str, ratio: float
) -> None:
    budget = budget_of(architecture, ratio)
    MIDDLE.check(budget)
    plan = allocated(MIDDLE, random_scores(budget), budget)
    assert_meets(plan, model_of(architecture), ratio)
    first, second, third, last = plan.layers
    for outer in (first, last):
        assert len(outer.attention) == budget.layers[0].attention.count
        assert len(outer.mlp) == budget.layers[0].mlp.count
    assert len(second.attention) == len(third.attention)
    assert abs(len(second.mlp) - len(third.mlp)) <= 1


def test_attention_and_mlp_of_the_paper_lose_a_quarter_at_a_fifth() -> None:
    """At a ratio of 0.2, structure=middle prunes 24 of the 30 equal layers, each by a quarter."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=30,
        num_attention_heads=8,
    )
    budget = price(adapt(random_model(config)), 0.2)
    quotas = Middle().quotas(budget)
    assert quotas[:4] == quotas[-2:] * 2 == [(8, 64)] * 4
    assert quotas[4:-2] == [(6, 48)] * 24


def test_without_outer_layers_it_is_ul_um() -> None:
    budget = budget_of("llama-gqa", 0.35)
    everywhere = Middle(keep_first=0, keep_last=0)
    assert everywhere.quotas(budget) == super(Middle, everywhere).quotas(budget)


def bounded(parameters: float) -> Budget:
    budget = budget_of("llama-gqa", 0.0)
    target = TargetConfig(parameters=parameters)
    adapter = adapt(model_of("llama-gqa"))
    bounds = bounds_of_shapes(target, adapter, budget.layers, 4, Biases(False), None)
    return budget.within(bounds)


def test_a_target_is_met() -> None:
    dense = sum(parameter.numel() for parameter in model_of("llama-gqa").parameters())
    budget = bounded(0.8 * dense)
    MIDDLE.check(budget)
    plan = allocated(MIDDLE, random_scores(budget), budget)
    [bound] = budget.bounds
    assert 0.78 * dense < bound.cost(budget.widths(plan)) <= 0.8 * dense


@pytest.mark.parametrize(
    ("structure", "budget", "line"),
    [
        (
            Middle(),
            budget_of("llama-gqa", 0.1),
            r"^structure\.keep_first \+ structure\.keep_last=6: expected at most 3, as this model "
            "has 4 layers",
        ),
        (
            MIDDLE,
            budget_of("llama-gqa", 0.5),
            r"^ratio=0\.5: 1 KV head and 1 neuron .* so this model allows at most 0\.42",
        ),
        (
            MIDDLE,
            bounded(2e4),
            r"^target\.parameters=20000: .* so this model allows at least",
        ),
    ],
    ids=["layers", "ratio", "target"],
)
def test_what_does_not_fit_is_refused(structure: Middle, budget: Budget, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        structure.check(budget)
