"""One pass through the layers can score heads and neurons, and measure the KL divergence of trials.

A trial prunes some heads or neurons of one layer. One pass for both purposes gives the same results
as two separate passes, even if it was interrupted and resumed.
"""

from pathlib import Path

import pytest
import torch

from flap.data import Batch
from flap.method.allocation import price
from flap.method.calibration import Calibration
from flap.method.importance import Scores, score_layers
from flap.method.search import PlanDivergence, Search
from flap.method.search.divergence import dense_plan
from flap.method.search.scoring import score_and_try
from flap.models import Resident
from flap.storage import NOT_KEPT, WorkFolder
from tests.cases import METRICS, tiny_model, tokens
from tests.helpers.compressed import COMPENSATIONS
from tests.helpers.marks import quick
from tests.helpers.placed import Interruption, interrupted
from tests.helpers.plans import divergences, with_layer

WINDOWS = tokens(windows=12)
SEARCH = Search(tokens=48, levels=[0.25, 0.5])


def calibration_of(architecture: str) -> Calibration:
    placed = Resident(tiny_model(architecture))
    windows = Batch.of(WINDOWS)
    known = Calibration(placed, windows, 4, []).observe(gradients=True)
    return Calibration(placed, windows, 4, known)


def tried(metric: str, divergence: PlanDivergence, work: WorkFolder = NOT_KEPT) -> Scores:
    budget = price(divergence.calibration.model.adapter, 0.4)
    return score_and_try(METRICS[metric](), SEARCH, budget, divergence, work)


def assert_same_scores(scores: Scores, expected: Scores) -> None:
    for layer, expected_layer in zip(scores.layers, expected.layers, strict=True):
        assert torch.equal(layer.attention, expected_layer.attention)
        assert torch.equal(layer.mlp, expected_layer.mlp)
    assert scores.inverse_power == expected.inverse_power


# These metrics need different statistics: OBS needs covariances, WIFV needs variances, taylor needs
# gradients, and random needs none.
@pytest.mark.parametrize("metric", ["OBS", "WIFV", "taylor", "random"])
@pytest.mark.parametrize("compensation", quick(1, ["linear", "bias", "none"]))
def test_one_walk_scores_and_measures_as_two_do(metric: str, compensation: str) -> None:
    calibration = calibration_of("llama-gqa")
    fit = COMPENSATIONS[compensation]
    model = calibration.model
    budget = price(model.adapter, 0.4)
    scores = tried(metric, PlanDivergence(calibration, fit))

    visits = calibration.visit("score", METRICS[metric]().needs_covariance)
    assert_same_scores(scores, score_layers(METRICS[metric](), model.adapter, visits))
    dense = dense_plan(model)
    for i, (layer, units) in enumerate(zip(scores.layers, budget.layers, strict=True)):
        trials = [with_layer(dense, i, trial) for trial in SEARCH.trials(layer, units)]
        expected = divergences(calibration, fit, trials, SEARCH.tokens)
        assert scores.divergences[i] == pytest.approx(expected, rel=1e-5)
        assert min(expected) > 0


@pytest.mark.usefixtures("every_layer_is_recorded")
@pytest.mark.parametrize("metric", ["OBS", "WIFV", "random"])
def test_an_interrupted_walk_ends_with_the_same_scores(metric: str, tmp_path: Path) -> None:
    calibration = calibration_of("llama-gqa")
    divergence = PlanDivergence(calibration, COMPENSATIONS["linear"])
    expected = tried(metric, divergence)
    work = WorkFolder(tmp_path / "score")
    with interrupted(calibration.model, layer=2, call=2), pytest.raises(Interruption):
        tried(metric, divergence, work)

    calls: list[int] = []
    first_mlp = calibration.model.layers[0].mlp
    first_mlp.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    scores = tried(metric, divergence, work)
    assert_same_scores(scores, expected)
    assert scores.divergences == expected.divergences
    # Random scores are drawn in order from the first layer, so a pass with them always begins at
    # the first layer.
    assert bool(calls) == (metric == "random")
