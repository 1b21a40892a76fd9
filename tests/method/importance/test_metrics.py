"""The scores of each metric agree with scores computed by hand.

A metric scores how much each input channel of an output projection matters. The tests also compute
the scores of complete models.
"""

import math
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch

from flap.method.calibration import LayerStatistics, Statistics
from flap.method.importance import Metric, Random, Taylor, score_layers
from flap.models import ModelAdapter, Pair, adapt
from tests.cases import METRICS, tiny_model
from tests.helpers import compressed

WEIGHT_OI = torch.tensor(
    [
        [1.0, -2.0, 0.0, 3.0],
        [2.0, 2.0, 0.0, 0.0],
        [-2.0, 1.0, 0.0, 4.0],
    ]
)
# Statistics of four tokens and four channels. The channels have the variances 3, 5, 12 and 0.5
# (with divisor 3), and the mean squares 4, 9, 16 and 1.
STATISTICS = Statistics(
    num_tokens=4,
    mean_I=torch.tensor([1.75, 5.25, 7.0, 0.625]).double().sqrt(),
    deviation_I=torch.tensor([9.0, 15.0, 36.0, 1.5]).double(),
    effect_U=torch.tensor([0.5, -2.0, 0.0, 1.0]).double(),
)
EXPECTED = {
    "IFV": [3.0, 5.0, 12.0, 0.5],
    "WIFV": [27.0, 45.0, 0.0, 12.5],  # the sums of squares of the columns are 9, 9, 0 and 25
    "WIFN": [10 / 3, 5.0, 0.0, 7 / 3],  # the means of |W| in the columns are 5/3, 5/3, 0 and 7/3
    "wanda": [10 / 3, 5.0, 0.0, 7 / 3],
    "magnitude": [3.0, 3.0, 0.0, 5.0],
    "taylor": [0.5, 2.0, 0.0, 1.0],
}


def calibrated(architecture: str) -> tuple[ModelAdapter, list[LayerStatistics]]:
    model, statistics = compressed.calibrated(architecture, biased=False)
    return adapt(model), statistics


def test_every_metric_has_its_oracle() -> None:
    assert set(METRICS) == {*EXPECTED, "random", "OBS"}  # test_obs.py tests OBS


@pytest.mark.parametrize("name", EXPECTED)
def test_by_hand(name: str) -> None:
    score_I = METRICS[name]().score(WEIGHT_OI, STATISTICS)
    assert score_I.tolist() == pytest.approx(EXPECTED[name], rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_square_attention_squares_attention_alone(name: str) -> None:
    adapter, statistics = calibrated("llama-gqa")
    plain = replace(METRICS[name](), square_attention=False)
    squaring = replace(METRICS[name](), square_attention=True)
    scores = score_layers(plain, adapter, enumerate(statistics))
    squared = score_layers(squaring, adapter, enumerate(statistics))
    for layer, expected in zip(squared.layers, scores.layers, strict=True):
        assert torch.equal(layer.attention, expected.attention.square())
        assert torch.equal(layer.mlp, expected.mlp)


def test_taylor_divides_the_score_of_a_unit_over_its_channels() -> None:
    of_heads = replace(STATISTICS, effect_U=torch.tensor([-3.0, 1.0]).double())
    columns_UC = torch.tensor([[0, 1], [2, 3]])
    score_UC = Taylor().score_units(WEIGHT_OI, of_heads, columns_UC)
    assert score_UC.tolist() == [[1.5, 1.5], [0.5, 0.5]]


def test_the_metrics_of_the_paper_square_by_default() -> None:
    squaring = {name for name, metric in METRICS.items() if metric().square_attention}
    assert squaring == {"IFV", "WIFV", "WIFN"}


def test_random_is_seeded_and_differs_by_layer() -> None:
    adapter, _ = calibrated("llama-gqa")

    def scores(seed: int) -> tuple[Pair[torch.Tensor], ...]:
        return score_layers(Random(seed=seed), adapter, enumerate([None] * 4)).layers

    first = scores(3)
    for layer, same_seed, other_seed in zip(first, scores(3), scores(4), strict=True):
        assert torch.equal(layer.mlp, same_seed.mlp)
        assert torch.equal(layer.attention, same_seed.attention)
        assert not torch.equal(layer.mlp, other_seed.mlp)
    for layer, other_layer in combinations(first, 2):
        assert not torch.equal(layer.mlp, other_layer.mlp)
        assert not torch.equal(layer.attention, other_layer.attention)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", METRICS)
def test_weights_that_are_not_finite_name_the_layer(name: str, value: float) -> None:
    _, statistics = calibrated("llama-gqa")
    blocks = {"1.self_attn.o_proj": "layer 1 attention", "2.mlp.down_proj": "layer 2 MLP"}
    for path, block in blocks.items():
        model = tiny_model("llama-gqa")
        model.model.layers.get_submodule(path).weight.data[0, 7] = value
        with pytest.raises(ValueError, match=f"scores of {block} are not finite"):
            score_layers(METRICS[name](), adapt(model), enumerate(statistics))


@dataclass(frozen=True)
class OfRows(Metric):
    """A wrong metric, which scores the output channels instead of the input channels."""

    def score(self, weight_OI: torch.Tensor, statistics: Statistics | None) -> torch.Tensor:
        return weight_OI.abs().amax(dim=1)


def test_scores_of_a_wrong_shape_name_the_metric() -> None:
    name = f"{__name__}.OfRows"
    line = rf"metric: {name} returns scores of shape \(3,\): expected \(4,\), one score a channel"
    with pytest.raises(ValueError, match=line):
        OfRows().score_units(WEIGHT_OI, STATISTICS, torch.arange(4)[:, None])
