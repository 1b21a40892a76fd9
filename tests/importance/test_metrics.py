"""Each metric against values computed by hand; scores of whole models are finite and have the adapter's shapes."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from flap.calibration import LayerStatistics, Statistics, collect_covariances
from flap.files import cache_root
from flap.importance import Random, score_layers
from flap.models import ModelAdapter, adapt
from tests.cases import ARCHITECTURES, METRICS, tiny_model, tokens

WEIGHT_OI = torch.tensor([[1.0, -2.0, 0.0, 3.0], [2.0, 2.0, 0.0, 0.0], [-2.0, 1.0, 0.0, 4.0]])
STATISTICS = Statistics(
    mean_I=torch.tensor([1.0, -2.0, 2.0, 0.5]),
    var_I=torch.tensor([3.0, 5.0, 12.0, 0.5]),
    msq_I=torch.tensor([4.0, 9.0, 16.0, 1.0]),
    num_tokens=100,
)
EXPECTED = {
    "IFV": [3.0, 5.0, 12.0, 0.5],
    "WIFV": [27.0, 45.0, 0.0, 12.5],  # column sums of squares: 9, 9, 0, 25
    "WIFN": [10 / 3, 5.0, 0.0, 7 / 3],  # column means of absolute values: 5/3, 5/3, 0, 7/3
    "wanda": [10 / 3, 5.0, 0.0, 7 / 3],
    "magnitude": [3.0, 3.0, 0.0, 5.0],
}


@cache
def calibrated(architecture: str) -> tuple[ModelAdapter, list[LayerStatistics]]:
    adapter = adapt(tiny_model(architecture))
    return adapter, list(collect_covariances(adapter, tokens(), 3, cache_root(None)))


def test_every_metric_has_its_oracle() -> None:
    assert set(METRICS) == {*EXPECTED, "random", "OBS"}  # of OBS: test_obs.py


@pytest.mark.parametrize("name", EXPECTED)
def test_by_hand(name: str) -> None:
    assert METRICS[name]().score(WEIGHT_OI, STATISTICS).tolist() == pytest.approx(EXPECTED[name], rel=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_channel_that_does_more_scores_higher(name: str) -> None:
    louder = torch.tensor([1.0, 2.0, 1.0, 1.0])
    twice = replace(STATISTICS, var_I=STATISTICS.var_I * louder**2, msq_I=STATISTICS.msq_I * louder**2)
    before = METRICS[name]().score(WEIGHT_OI, STATISTICS)
    after = METRICS[name]().score(WEIGHT_OI * louder, twice)
    assert (after > before).tolist() == [False, True, False, False]
    assert torch.equal(after[louder == 1], before[louder == 1])


@pytest.mark.parametrize("name", METRICS)
def test_square_attention_squares_attention_alone(name: str) -> None:
    adapter, known = calibrated("llama-gqa")
    layers = range(len(adapter.layers))
    plain = score_layers(replace(METRICS[name](), square_attention=False), adapter, layers, known)
    squared = score_layers(replace(METRICS[name](), square_attention=True), adapter, layers, known)
    for i in layers:
        assert torch.equal(squared.kv_heads[i], plain.kv_heads[i].square())
        assert torch.equal(squared.neurons[i], plain.neurons[i])


def test_who_squares_by_default() -> None:
    assert {name for name in METRICS if METRICS[name]().square_attention} == {"IFV", "WIFV", "WIFN"}


def test_wanda_is_wifn_without_the_square() -> None:
    adapter, known = calibrated("qwen2-gqa-tied")
    wanda, wifn = (score_layers(METRICS[name](), adapter, range(4), known) for name in ("wanda", "WIFN"))
    for i in range(4):
        assert torch.equal(wifn.kv_heads[i], wanda.kv_heads[i].square())
        assert torch.equal(wifn.neurons[i], wanda.neurons[i])


def test_random_is_seeded_and_differs_by_layer() -> None:
    adapter, _ = calibrated("llama-gqa")
    first, again, other = (score_layers(Random(seed=s), adapter, range(4), [None] * 4) for s in (3, 3, 4))
    for i in range(4):
        assert torch.equal(first.neurons[i], again.neurons[i])
        assert torch.equal(first.kv_heads[i], again.kv_heads[i])
        assert not torch.equal(first.neurons[i], other.neurons[i])
        assert not torch.equal(first.neurons[i], first.neurons[i - 1])
        assert not torch.equal(first.kv_heads[i], first.kv_heads[i - 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", METRICS)
def test_weights_that_are_not_finite_name_the_layer(name: str, value: float) -> None:
    _, known = calibrated("llama-gqa")
    for block, named in (("1.self_attn.o_proj", "layer 1 attention"), ("2.mlp.down_proj", "layer 2 MLP")):
        model = tiny_model("llama-gqa")
        model.model.layers.get_submodule(block).weight.data[0, 7] = value
        with pytest.raises(ValueError, match=f"scores of {named} are not finite"):
            score_layers(METRICS[name](), adapt(model), range(4), known)


def test_squares_beyond_float32_are_not_passed_on() -> None:
    _, known = calibrated("llama-gqa")
    model = tiny_model("llama-gqa")
    model.model.layers[1].self_attn.o_proj.weight.data *= 1e12  # finite, and so is its score: about 1e24
    with pytest.raises(ValueError, match="scores of layer 1 attention are not finite"):
        score_layers(METRICS["WIFV"](), adapt(model), range(4), known)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", METRICS)
def test_scores_of_a_model(name: str, architecture: str) -> None:
    adapter, known = calibrated(architecture)
    scores = score_layers(METRICS[name](), adapter, range(4), known)
    groups = ARCHITECTURES[architecture].num_key_value_heads
    assert [tuple(score_GC.shape) for score_GC in scores.kv_heads] == [(groups, 64 // groups)] * 4
    assert [tuple(score_I.shape) for score_I in scores.neurons] == [(56,)] * 4
    for score in (*scores.kv_heads, *scores.neurons):
        assert score.dtype == torch.float32
        assert torch.isfinite(score).all()
        assert (score >= 0).all()
