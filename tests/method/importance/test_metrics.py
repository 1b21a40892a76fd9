"""Each metric against values computed by hand; scores of whole models are finite and have the adapter's shapes."""

from dataclasses import dataclass, replace

import pytest
import torch

from flap.method.calibration import LayerStatistics, Statistics
from flap.method.importance import Metric, Random, score_layers
from flap.models import ModelAdapter, adapt
from tests.cases import METRICS, tiny_model
from tests.helpers import compressed

WEIGHT_OI = torch.tensor([[1.0, -2.0, 0.0, 3.0], [2.0, 2.0, 0.0, 0.0], [-2.0, 1.0, 0.0, 4.0]])
# Four tokens: variances 3, 5, 12, 0.5 (divisor 3); mean squares 4, 9, 16, 1, of which the deviations are 3/4 variances.
STATISTICS = Statistics(
    num_tokens=4,
    mean_I=torch.tensor([1.75, 5.25, 7.0, 0.625]).double().sqrt(),
    deviation_I=torch.tensor([9.0, 15.0, 36.0, 1.5]).double(),
)
EXPECTED = {
    "IFV": [3.0, 5.0, 12.0, 0.5],
    "WIFV": [27.0, 45.0, 0.0, 12.5],  # column sums of squares: 9, 9, 0, 25
    "WIFN": [10 / 3, 5.0, 0.0, 7 / 3],  # column means of absolute values: 5/3, 5/3, 0, 7/3
    "wanda": [10 / 3, 5.0, 0.0, 7 / 3],
    "magnitude": [3.0, 3.0, 0.0, 5.0],
}


def calibrated(architecture: str) -> tuple[ModelAdapter, list[LayerStatistics]]:
    model, known = compressed.calibrated(architecture, biased=False)
    return adapt(model), known


def test_every_metric_has_its_oracle() -> None:
    assert set(METRICS) == {*EXPECTED, "random", "OBS"}  # of OBS: test_obs.py


@pytest.mark.parametrize("name", EXPECTED)
def test_by_hand(name: str) -> None:
    assert METRICS[name]().score(WEIGHT_OI, STATISTICS).tolist() == pytest.approx(
        EXPECTED[name], rel=1e-6
    )


@pytest.mark.parametrize("name", METRICS)
def test_square_attention_squares_attention_alone(name: str) -> None:
    adapter, known = calibrated("llama-gqa")
    plain = score_layers(
        replace(METRICS[name](), square_attention=False), adapter, enumerate(known)
    )
    squared = score_layers(
        replace(METRICS[name](), square_attention=True), adapter, enumerate(known)
    )
    for one, other in zip(squared.layers, plain.layers, strict=True):
        assert torch.equal(one.attention, other.attention.square())
        assert torch.equal(one.mlp, other.mlp)


def test_who_squares_by_default() -> None:
    assert {name for name in METRICS if METRICS[name]().square_attention} == {"IFV", "WIFV", "WIFN"}


def test_random_is_seeded_and_differs_by_layer() -> None:
    adapter, _ = calibrated("llama-gqa")
    first, again, other = (
        score_layers(Random(seed=seed), adapter, enumerate([None] * 4)).layers for seed in (3, 3, 4)
    )
    for i in range(4):
        assert torch.equal(first[i].mlp, again[i].mlp)
        assert torch.equal(first[i].attention, again[i].attention)
        assert not torch.equal(first[i].mlp, other[i].mlp)
        assert not torch.equal(first[i].mlp, first[i - 1].mlp)
        assert not torch.equal(first[i].attention, first[i - 1].attention)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", METRICS)
def test_weights_that_are_not_finite_name_the_layer(name: str, value: float) -> None:
    _, known = calibrated("llama-gqa")
    for block, named in (
        ("1.self_attn.o_proj", "layer 1 attention"),
        ("2.mlp.down_proj", "layer 2 MLP"),
    ):
        model = tiny_model("llama-gqa")
        model.model.layers.get_submodule(block).weight.data[0, 7] = value
        with pytest.raises(ValueError, match=f"scores of {named} are not finite"):
            score_layers(METRICS[name](), adapt(model), enumerate(known))


@dataclass(frozen=True)
class OfRows(Metric):
    """Scores the output channels, by mistake."""

    def score(self, weight_OI: torch.Tensor, statistics: Statistics | None) -> torch.Tensor:
        return weight_OI.abs().amax(dim=1)


def test_scores_of_a_wrong_shape_name_the_metric() -> None:
    name = f"{__name__}.OfRows"
    line = rf"metric: {name} returns scores of shape \(3,\): expected \(4,\), one score a channel"
    with pytest.raises(ValueError, match=line):
        OfRows().score_units(WEIGHT_OI, STATISTICS, torch.arange(4)[:, None])
