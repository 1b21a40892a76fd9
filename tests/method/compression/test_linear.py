"""Linear compensation agrees with least squares, and is never worse than bias compensation.

Linear compensation fits a linear map from the kept channels to the outputs of a projection, and its
result is always finite. Bias compensation adapts only the output bias. The error of a fitted map is
measured on held-out tokens, which are not used for the fit.
"""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.data import Batch
from flap.evaluation.perplexity import perplexity, window_losses
from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.calibration import Statistics
from flap.method.compression import BiasCompensation, Compensation, LinearCompensation
from flap.method.compression.compensation import Fit, FitReport, Removal
from flap.method.compression.linear import chains
from flap.models import Resident
from tests.cases import ARCHITECTURES, tiny_model, tokens
from tests.helpers.compressed import changed, covariances, in_parts, noise, peculiar

CASES = ["few tokens", "constant", "zero", "all constant", "twins", "huge", "tiny"]


def every_fifth(activation_TI: Tensor) -> Tensor:
    """Return a mask of the held-out tokens, which are every fifth token."""
    return torch.arange(len(activation_TI)) % 5 == 0


def fit(weight_OI: Tensor, activation_TI: Tensor, kept: int, ridge: float | None = None) -> Fit:
    """Fit a map from the first `kept` channels to the outputs. Every fifth token is held out."""
    held_out_T = every_fifth(activation_TI)
    statistics = in_parts(activation_TI[~held_out_T], activation_TI[held_out_T])
    return fit_of(LinearCompensation(ridge), weight_OI, statistics, kept)


def fit_of(compensation: Compensation, weight_OI: Tensor, statistics: Statistics, kept: int) -> Fit:
    channels = torch.arange(weight_OI.shape[1])
    removal = Removal(channels[:kept], channels[kept:])
    [fitted] = compensation.fits(weight_OI, statistics, [removal])
    return fitted


def report_of(fitted: Fit) -> FitReport:
    assert fitted.report is not None
    return fitted.report


def outputs(fitted: Fit, activation_TI: Tensor) -> Tensor:
    assert fitted.bias_O is not None
    kept = fitted.weight_OK.shape[1]
    return activation_TI[:, :kept] @ fitted.weight_OK.T + fitted.bias_O


def test_by_hand() -> None:
    """Of the three channels x_0, x_1 and x_2, the last two are removed.

    In the four tokens, x_1 is exactly 2 x_0 + 1, and x_2 is uncorrelated with x_0.
    """
    activation_TI = torch.tensor(
        [
            [-2.0, -3.0, 1.0],
            [-2.0, -3.0, 3.0],
            [2.0, 5.0, 1.0],
            [2.0, 5.0, 3.0],
        ]
    )
    weight_OI = torch.tensor(
        [
            [1.0, 1.0, 0.0],
            [0.0, 2.0, 1.0],
        ]
    )
    statistics = in_parts(activation_TI, activation_TI)

    # var_0 = 4, cov_01 = 8, and the means of the channels are 0, 1 and 2. So the slope of channel 1
    # is 2, and the slope of channel 2 is 0.
    exact = fit_of(LinearCompensation(0.0), weight_OI, statistics, 1)
    assert exact.weight_OK.flatten().tolist() == pytest.approx([1 + 2, 0 + 2 * 2])
    assert exact.bias_O is not None
    assert exact.bias_O.tolist() == pytest.approx([1, 2 * 1 + 2])
    # With the linear map, the error is 1: the variance of channel 2, which only the second output
    # reads. With the bias alone, the error is 1 + 16 · (1 + 4) = 81, because it also contains the
    # variance of channel 1 times the sum of the squares of its two weights.
    assert report_of(exact) == pytest.approx((0.0, 1.0, 81.0), abs=1e-5)

    # The variances are 4, 16 and 1, and their mean is 7. So with a ridge of 3/7, the slope of
    # channel 1 is 8 / (4 + 3 / 7 · 7) = 8 / 7.
    ridged = fit_of(LinearCompensation(3 / 7), weight_OI, statistics, 1)
    slope = 8 / 7
    assert ridged.weight_OK.flatten().tolist() == pytest.approx([1 + slope, 2 * slope])


@pytest.mark.parametrize("trial", [False, True])
def test_without_held_out_tokens_the_bias_stays(trial: bool) -> None:
    """Without held-out tokens, the compensation changes only the bias.

    An expert has no held-out tokens if the router sends none to it.

    trial: whether the channels are removed only in a trial of structure=search. In a trial, the
        fitted map is compared with the bias on held-out tokens only if there are few tokens, as
        here: fewer than two tokens for each channel.
    """
    activation_TI = noise(30, 20) + 3
    weight_OI = noise(4, 20, seed=1)
    removal = Removal(*torch.arange(20).split(12))
    statistics = in_parts(activation_TI, activation_TI[:0])
    [fitted] = LinearCompensation().fits(weight_OI, statistics, [removal], trial)
    assert fitted.report == (None, 0.0, 0.0)
    torch.testing.assert_close(fitted.weight_OK, weight_OI[:, :12])


def test_held_out_errors_are_those_of_the_outputs() -> None:
    """The report has the errors, on held-out tokens, of maps that were fitted to other tokens."""
    activation_TI = noise(100, 8) @ noise(8, 8, seed=3)
    weight_OI = noise(4, 8, seed=4)
    held_out_T = every_fifth(activation_TI)
    fitting_TI = activation_TI[~held_out_T]
    held_out_TI = activation_TI[held_out_T]
    statistics = in_parts(fitting_TI, fitting_TI)
    dense_TO = held_out_TI @ weight_OI.T

    errors = []
    for compensation in (LinearCompensation(0.1), BiasCompensation()):
        fitted = fit_of(compensation, weight_OI, statistics, 5)
        error_TO = outputs(fitted, held_out_TI) - dense_TO
        errors.append(error_TO.square().sum(1).mean().item())
    report = report_of(fit(weight_OI, activation_TI, 5, ridge=0.1))
    assert report == pytest.approx((0.1, *errors), rel=1e-4)


def test_the_ridge_with_the_least_held_out_error_is_chosen() -> None:
    activation_TI = noise(60, 30) @ noise(30, 30, seed=3)
    weight_OI = noise(4, 30, seed=4)
    errors = []
    for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        errors.append(report_of(fit(weight_OI, activation_TI, 20, ridge)).held_out_error)
    assert len(set(errors)) == 5
    chosen = report_of(fit(weight_OI, activation_TI, 20))
    assert chosen.held_out_error == min(errors)


def removal_of(channels: int, pruned: list[int]) -> Removal:
    kept = sorted(set(range(channels)) - set(pruned))
    return Removal(torch.tensor(kept), torch.tensor(pruned))


def test_each_removal_of_a_chain_contains_the_one_before_it() -> None:
    removals = [
        removal_of(6, [1, 3, 5]),
        removal_of(6, [3]),
        removal_of(6, [0, 2]),
        removal_of(6, [3, 5]),
        removal_of(6, [3]),
    ]
    assert chains(removals) == [[1, 4, 3, 0], [2]]


@pytest.mark.parametrize(
    ("ridge", "chosen"),
    [
        (1e-2, None),
        (1e-1, None),
        (1.0, 1.0),
        (None, 1.0),
    ],
)
def test_the_largest_ridge_is_tried_if_no_smaller_one_beats_the_bias(
    ridge: float | None, chosen: float | None
) -> None:
    """With few tokens and weak correlation, small ridges have a larger error than the bias alone.

    Of the tested ridges, only 1.0 has a smaller error than the bias alone.
    """
    common_T1 = 0.5 * noise(50, 1, seed=93)
    activation_TI = noise(50, 30, seed=53) + common_T1
    weight_OI = noise(4, 30, seed=4)
    report = report_of(fit(weight_OI, activation_TI, 20, ridge))
    assert report.ridge == chosen
    if chosen is not None:
        assert report.held_out_error < 0.8 * report.held_out_error_of_bias


@pytest.mark.parametrize("trial", [False, True])
def test_several_removals_have_the_fits_of_each_alone(trial: bool) -> None:
    """Fits for several sets of removed channels are the same in one call as in separate calls."""
    activation_TI = noise(500, 12) @ noise(12, 12, seed=3)
    weight_OI = noise(4, 12, seed=4)
    statistics = in_parts(activation_TI[:400], activation_TI[400:])
    several = [
        removal_of(12, [3]),
        removal_of(12, [3, 7]),
        removal_of(12, [1, 3, 7, 8, 9]),
        removal_of(12, [0, 2]),
        removal_of(12, [3, 7]),
        removal_of(12, [11]),
    ]
    together = LinearCompensation().fits(weight_OI, statistics, several, trial)
    for removal, fitted in zip(several, together, strict=True):
        [alone] = LinearCompensation().fits(weight_OI, statistics, [removal], trial)
        torch.testing.assert_close(fitted.weight_OK, alone.weight_OK, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fitted.bias_O, alone.bias_O, rtol=1e-4, atol=1e-4)
        assert report_of(fitted).ridge == report_of(alone).ridge


def test_the_bias_stays_if_nothing_can_be_predicted() -> None:
    """The channels are independent, and there are few tokens.

    So every fitted map is noise, and predicts the outputs of held-out tokens worse than the bias
    does. The compensation changes only the bias.
    """
    activation_TI = noise(40, 30)
    weight_OI = noise(4, 30, seed=4)
    fitted = fit(weight_OI, activation_TI, 20)
    report = report_of(fitted)
    assert report.ridge is None
    assert report.held_out_error == report.held_out_error_of_bias
    assert torch.equal(fitted.weight_OK, weight_OI[:, :20])
    pruned_mean_P = activation_TI[:, 20:].mean(0)
    torch.testing.assert_close(fitted.bias_O, weight_OI[:, 20:] @ pruned_mean_P)


@pytest.mark.parametrize("ridge", [None, 0.0, 0.01])
@pytest.mark.parametrize("case", CASES)
def test_fits_of_peculiar_channels_are_finite(case: str, ridge: float | None) -> None:
    tokens = 12 if case == "few tokens" else 100
    scale = {"huge": 1e15, "tiny": 1e-15}.get(case, 1.0)
    activation_TI = peculiar(case, noise(tokens, 20)) * scale
    fitted = fit(noise(4, 20, seed=4), activation_TI, 12, ridge)
    assert fitted.bias_O is not None
    assert torch.isfinite(fitted.weight_OK).all()
    assert torch.isfinite(fitted.bias_O).all()
    report = report_of(fitted)
    assert report.held_out_error <= report.held_out_error_of_bias


def repeat_units(model: PreTrainedModel, groups: int) -> None:
    """Copy neurons 0 to 27 to neurons 28 to 55, and the first KV head to the last KV head."""
    for layer in model.model.layers:
        attention = layer.self_attn
        copies = dict.fromkeys((layer.mlp.gate_proj, layer.mlp.up_proj), 28)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            copies[linear] = linear.out_features // groups
        for linear, rows in copies.items():
            linear.weight.data[-rows:] = linear.weight.data[:rows]
            if linear.bias is not None:
                linear.bias.data[-rows:] = linear.bias.data[:rows]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_whose_removed_units_repeat_kept_ones_stays_as_it_is(architecture: str) -> None:
    model = tiny_model(architecture)
    groups = ARCHITECTURES[architecture].num_key_value_heads
    repeat_units(model, groups)
    statistics = covariances(model, tokens(windows=20), 4)
    without_copies = LayerPlan(tuple(range(groups - 1)), tuple(range(28)))
    plan = PruningPlan((without_copies,) * 4)
    unseen = Batch.of(tokens(windows=8, seed=9))

    def measured(model: PreTrainedModel) -> float:
        return perplexity(window_losses(Resident(model), unseen, 4))

    dense = measured(model)
    linear = measured(changed(model, plan, LinearCompensation(1e-6), statistics))
    bias = measured(changed(model, plan, BiasCompensation(), statistics))
    assert linear == pytest.approx(dense, rel=2e-3)
    rest = abs(linear - dense)
    assert abs(bias - dense) > 10 * rest
