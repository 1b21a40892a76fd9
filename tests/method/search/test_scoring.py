"""Scores and a search's trials from one walk: what each has by itself, and what a killed walk goes on with."""

from pathlib import Path

import pytest
import torch

from flap.method.allocation import price
from flap.method.calibration import Calibration
from flap.method.importance import Scores, score_layers
from flap.method.search import PlanDivergence, Search
from flap.method.search.divergence import dense_plan
from flap.method.search.scoring import score_and_try
from flap.models import Resident
from flap.storage import NOT_KEPT, WorkFolder
from tests.cases import METRICS, collect, tiny_model, tokens
from tests.helpers.compressed import COMPENSATIONS
from tests.helpers.placed import Interruption, interrupted
from tests.helpers.plans import divergences, with_layer

WINDOWS = tokens(windows=12)
SEARCH = Search(tokens=48, levels=[0.25, 0.5])


def calibration_of(architecture: str) -> Calibration:
    placed = Resident(tiny_model(architecture))
    return Calibration(placed, WINDOWS, 4, collect(placed, WINDOWS, 4))


def tried(metric: str, divergence: PlanDivergence, work: WorkFolder = NOT_KEPT) -> Scores:
    budget = price(divergence.calibration.model.adapter, 0.4)
    return score_and_try(METRICS[metric](), SEARCH, budget, divergence, work)


def equal(one: Scores, other: Scores) -> bool:
    layers = zip(one.layers, other.layers, strict=True)
    same = all(torch.equal(*pair) for both in layers for pair in zip(*both, strict=True))
    return same and one.inverse_power == other.inverse_power


@pytest.mark.parametrize("compensation", ["none", "bias", "linear"])
@pytest.mark.parametrize(
    "metric", ["OBS", "WIFV", "random"]
)  # with covariances, with statistics, with neither
def test_one_walk_scores_and_measures_as_two_do(metric: str, compensation: str) -> None:
    calibration = calibration_of("llama-gqa")
    fit = COMPENSATIONS[compensation]
    model = calibration.model
    budget = price(calibration.model.adapter, 0.4)
    found = tried(metric, PlanDivergence(calibration, fit))
    visits = calibration.visit("score", METRICS[metric]().needs_covariance)
    assert equal(found, score_layers(METRICS[metric](), model.adapter, visits))
    for i, (layer, prices) in enumerate(zip(found.layers, budget.layers, strict=True)):
        trials = [with_layer(dense_plan(model), i, trial) for trial in SEARCH.trials(layer, prices)]
        assert found.divergences[i] == pytest.approx(
            divergences(calibration, fit, trials, SEARCH.tokens), rel=1e-5
        )
        assert min(found.divergences[i]) > 0


@pytest.mark.usefixtures("every_layer_is_recorded")
@pytest.mark.parametrize("metric", ["OBS", "WIFV", "random"])
def test_an_interrupted_walk_ends_in_the_same(metric: str, tmp_path: Path) -> None:
    calibration = calibration_of("llama-gqa")
    fit = COMPENSATIONS["linear"]
    expected = tried(metric, PlanDivergence(calibration, fit))
    divergence = PlanDivergence(calibration, fit)
    work = WorkFolder(tmp_path / "score")
    with interrupted(calibration.model, layer=2, call=2), pytest.raises(Interruption):
        tried(metric, divergence, work)
    seen: list[int] = []
    calibration.model.layers[0].mlp.register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0]))
    )
    found = tried(metric, divergence, work)
    assert equal(found, expected) and found.divergences == expected.divergences
    assert bool(seen) == (metric == "random")  # which is drawn again from the first layer on
