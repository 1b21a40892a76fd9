"""Scores of the metric OBS agree with values computed by hand, and with least-squares errors.

OBS scores a unit by the error that its removal causes. The least-squares fits predict the outputs
of the dense projection from the kept channels.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flap.method.calibration import Statistics
from flap.method.importance import OBS
from tests.helpers.compressed import in_parts, peculiar


def statistics_of(activation_TI: Tensor) -> Statistics:
    return in_parts(activation_TI[::2], activation_TI[1::2])


def correlated(channels: int, seed: int = 0) -> Tensor:
    """Return activations of 400 tokens with correlated channels."""
    generator = torch.Generator().manual_seed(seed)
    independent_TI = torch.randn(400, channels, generator=generator)
    return independent_TI @ torch.randn(channels, channels, generator=generator)


def weights(outputs: int, channels: int, seed: int = 100) -> Tensor:
    return correlated(channels, seed)[:outputs]


def remaining_error(weight_OI: Tensor, activation_TI: Tensor, kept: list[int]) -> float:
    """Return the mean squared error of outputs that least squares predicts from the kept channels.

    The fit has an intercept.
    """
    wanted_TO = (activation_TI @ weight_OI.T).double()
    ones_T1 = torch.ones(len(activation_TI), 1)
    given_TK = torch.cat([activation_TI[:, kept], ones_T1], dim=1).double()
    fitted_TO = given_TK @ torch.linalg.lstsq(given_TK, wanted_TO).solution
    error_TO = fitted_TO - wanted_TO
    return error_TO.square().sum(1).mean().item()


def errors_without(
    weight_OI: Tensor, activation_TI: Tensor, units: Sequence[Sequence[int]]
) -> list[float]:
    """For each unit, return the error that remains if only this unit is removed.

    units: the channels of each unit.
    """
    channels = set(range(weight_OI.shape[1]))
    errors = []
    for unit in units:
        kept = sorted(channels - set(unit))
        errors.append(remaining_error(weight_OI, activation_TI, kept))
    return errors


def test_by_hand() -> None:
    """Two channels have the covariance matrix H = [[2, 1], [1, 2]] / 2 and means of 3.

    So H⁻¹ = [[4, -2], [-2, 4]] / 3.
    """
    root = 3**0.5 / 2
    deviations_TI = torch.tensor(
        [
            [1.0, 0.5 + root],
            [1.0, 0.5 - root],
            [-1.0, -0.5 + root],
            [-1.0, -0.5 - root],
        ]
    )
    weight_OI = torch.tensor(
        [
            [1.0, 2.0],
            [0.0, 1.0],
        ]
    )
    score_I = OBS(ridge=1e-9).score(weight_OI, statistics_of(deviations_TI + 3))
    # Channel 0 has the lower cost, 1² / (H⁻¹)_00 = 3/4, and is removed first. Then half of each of
    # its weights is added to the weight of channel 1, so removing channel 1 costs (2 + 1/2)² + 1².
    assert score_I.tolist() == pytest.approx([0.75, 7.25], rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_unit_whose_removal_leaves_the_least_error_leaves_first(seed: int) -> None:
    activation_TI = correlated(6, seed)
    weight_OI = weights(4, 6, seed + 100)
    errors = errors_without(weight_OI, activation_TI, [[j] for j in range(6)])
    score_I = OBS(ridge=1e-9).score(weight_OI, statistics_of(activation_TI))
    assert int(score_I.argmin()) == errors.index(min(errors))
    assert score_I.min().item() == pytest.approx(min(errors), rel=1e-3)


def test_an_attention_unit_costs_what_all_its_channels_cost_together() -> None:
    activation_TI = correlated(6)
    weight_OI = weights(4, 6)
    columns_UC = torch.tensor([[0, 3], [1, 4], [2, 5]])
    errors = errors_without(weight_OI, activation_TI, columns_UC.tolist())

    statistics = statistics_of(activation_TI)
    score_UC = OBS(ridge=1e-9).score_units(weight_OI, statistics, columns_UC)
    score_U = score_UC.sum(1)
    assert int(score_U.argmin()) == errors.index(min(errors))
    assert score_U.min().item() == pytest.approx(min(errors), rel=1e-3)
    assert torch.equal(score_UC[:, 0], score_UC[:, 1])


def test_the_costs_of_removed_units_add_up_to_the_remaining_error() -> None:
    """The costs of removed units add up to the error that remains after their removal.

    Each channel is a unit here. In the order of removal, costs never fall: a lower cost is raised
    to the highest cost of the units that were removed earlier.
    """
    generator = torch.Generator().manual_seed(0)
    weight_OI = weights(4, 8)
    scale_I = 10 ** (torch.arange(8) / 4)
    activation_TI = scale_I * torch.randn(400, 8, generator=generator)
    activation_TI += correlated(8) / 10
    score_I = OBS(ridge=1e-9).score(weight_OI, statistics_of(activation_TI))
    order = score_I.argsort(stable=True).tolist()
    for count in (1, 3, 5):
        error = remaining_error(weight_OI, activation_TI, sorted(order[count:]))
        costs = score_I[order[:count]]
        assert costs.sum().item() == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    "case", ["few tokens", "constant", "zero", "all constant", "twins", "huge", "tiny"]
)
def test_scores_of_peculiar_channels_are_finite(case: str) -> None:
    tokens = 6 if case == "few tokens" else 400
    scale = {"huge": 1e12, "tiny": 1e-12}.get(case, 1.0)
    activation_TI = peculiar(case, correlated(20)[:tokens]) * scale
    score_I = OBS().score(weights(4, 20), statistics_of(activation_TI))
    assert torch.isfinite(score_I).all()
    assert (score_I >= 0).all()
    if case in ("constant", "zero"):
        assert score_I[::3].max() < score_I[1::3].min()


def test_a_ridge_that_rounding_swallows_is_refused_if_the_covariance_is_singular() -> None:
    activation_TI = peculiar("twins", correlated(20))
    refusal = r"^metric\.ridge=1e-20: too small, even times 1000; try 0\.01$"
    with pytest.raises(ValueError, match=refusal):
        OBS(ridge=1e-20).score(weights(4, 20), statistics_of(activation_TI))


def test_a_larger_ridge_is_used_with_a_warning_if_activations_need_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    activation_TI = correlated(40)
    weight_OI = weights(4, 40)
    # Two of the 400 tokens get very large activations. Therefore, the rounding error of the
    # covariance is larger than the variance of all other tokens.
    activation_TI[::200] *= 1e5
    statistics = statistics_of(activation_TI)
    score_I = OBS(ridge=1e-7).score(weight_OI, statistics)
    assert caplog.messages == [
        "metric.ridge=1e-07 is too small for these 40 channels; trying 1e-06",
        "metric.ridge=1e-06 is too small for these 40 channels; trying 1e-05",
    ]
    with_larger_ridge = OBS(ridge=1e-7 * 10.0**2)
    assert torch.equal(score_I, with_larger_ridge.score(weight_OI, statistics))
    assert torch.isfinite(score_I).all()


def test_remaining_channels_are_packed_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = statistics_of(correlated(40))
    weight_OI = weights(8, 40)
    at_once_I = OBS().score(weight_OI, statistics)
    monkeypatch.setattr("flap.method.importance.obs.STRIP", 3)
    assert torch.equal(OBS().score(weight_OI, statistics), at_once_I)


def test_a_whole_expert_costs_its_output_error_with_the_ridge_and_without_biases() -> None:
    """The cost is tr(W H Wᵀ): W is the weight, H the covariance plus the ridge (docs/method.md)."""
    activation_TI = correlated(6)
    weight_OI = weights(3, 6, seed=1)
    statistics = in_parts(activation_TI, activation_TI)
    all_channels_UC = torch.arange(6)[None]
    [score_C] = OBS(ridge=0.1).score_units(weight_OI, statistics, all_channels_UC)

    covariance_II = activation_TI.T.cov(correction=0)
    diagonal = covariance_II.diagonal().mean()
    hessian_II = covariance_II + 0.1 * diagonal * torch.eye(6)
    expected = (weight_OI @ hessian_II @ weight_OI.T).trace().item()
    assert score_C.sum().item() == pytest.approx(expected, rel=1e-4)
