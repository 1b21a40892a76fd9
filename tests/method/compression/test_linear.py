"""Linear compensation: least squares by hand, exact where it can be, never worse than the bias, always finite."""

import pytest
import torch
from torch import Tensor

from flap.evaluation.perplexity import perplexity, window_losses
from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.calibration import Statistics
from flap.method.compression import BiasCompensation, Compensation, LinearCompensation
from flap.method.compression.compensation import Fit, Removal
from flap.method.compression.linear import chains
from flap.models import Resident
from tests.cases import ARCHITECTURES, tiny_model, tokens
from tests.helpers.compressed import changed, covariances, in_parts, noise, peculiar


def fit(weight_OI: Tensor, activation_TI: Tensor, kept: int, ridge: float | None = None) -> Fit:
    """The first `kept` channels stay; every fifth token is held out."""
    held_out = torch.arange(len(activation_TI)) % 5 == 0
    statistics = in_parts(activation_TI[~held_out], activation_TI[held_out])
    return one_fit(LinearCompensation(ridge), weight_OI, statistics, kept)


def one_fit(
    compensation: Compensation, weight_OI: Tensor, statistics: Statistics, kept: int
) -> Fit:
    channels = torch.arange(weight_OI.shape[1])
    return compensation.fits(weight_OI, statistics, [Removal(channels[:kept], channels[kept:])])[0]


def outputs(fitted: Fit, activation_TI: Tensor) -> Tensor:
    assert fitted.bias_O is not None
    return activation_TI[:, : fitted.weight_OK.shape[1]] @ fitted.weight_OK.T + fitted.bias_O


def test_by_hand() -> None:
    """Four tokens, three channels, the last two leave: x_1 = 2 x_0 + 1 exactly, x_2 is uncorrelated with x_0."""
    activation_TI = torch.tensor(
        [[-2.0, -3.0, 1.0], [-2.0, -3.0, 3.0], [2.0, 5.0, 1.0], [2.0, 5.0, 3.0]]
    )
    weight_OI = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    both = in_parts(activation_TI, activation_TI)
    exact = one_fit(LinearCompensation(0.0), weight_OI, both, 1)
    # var_0 = 4, cov_01 = 8, means 0, 1, 2: slope 2 of channel 1, 0 of channel 2
    torch.testing.assert_close(exact.weight_OK, torch.tensor([[1.0 + 2.0], [0.0 + 2 * 2.0]]))
    torch.testing.assert_close(exact.bias_O, torch.tensor([1.0, 2 * 1.0 + 2.0]))
    assert exact.report is not None
    # what is left is channel 2's variance of 1, read by the second output alone; of the bias also cov: 16 (1 + 4)
    assert exact.report == pytest.approx((0.0, 1.0, 81.0), abs=1e-5)
    ridged = one_fit(LinearCompensation(3 / 7), weight_OI, both, 1)
    # the variances are 4, 16 and 1: 8 / (4 + 3 / 7 · 7) = 8 / 7
    torch.testing.assert_close(ridged.weight_OK, torch.tensor([[1 + 8 / 7], [2 * 8 / 7]]))


def test_without_held_out_tokens_the_bias_stays() -> None:
    """As of an expert: the error on no token is no error of a map."""
    activation_TI = noise(30, 20) + 3
    for trial in (False, True):  # in a trial because there are fewer than two tokens a channel
        removal = Removal(*torch.arange(20).split(12))
        statistics = in_parts(activation_TI, activation_TI[:0])
        [fitted] = LinearCompensation().fits(noise(4, 20, seed=1), statistics, [removal], trial)
        assert fitted.report == (None, 0.0, 0.0)
        torch.testing.assert_close(fitted.weight_OK, noise(4, 20, seed=1)[:, :12])


def test_held_out_errors_are_those_of_the_outputs() -> None:
    """Measured on the held-out tokens themselves, with the map that the other tokens alone would give."""
    activation_TI = noise(100, 8) @ noise(8, 8, seed=3)
    weight_OI = noise(4, 8, seed=4)
    held_out = torch.arange(100) % 5 == 0
    one = in_parts(activation_TI[~held_out], activation_TI[~held_out])
    without, bias = (
        one_fit(kind, weight_OI, one, 5) for kind in (LinearCompensation(0.1), BiasCompensation())
    )
    dense_TO = activation_TI @ weight_OI.T
    measured = [
        (outputs(fitted, activation_TI) - dense_TO)[held_out].square().sum(1).mean().item()
        for fitted in (without, bias)
    ]
    report = fit(weight_OI, activation_TI, 5, ridge=0.1).report
    assert report is not None
    assert report == pytest.approx((0.1, *measured), rel=1e-4)


def test_the_ridge_is_the_one_that_does_best_on_held_out_tokens() -> None:
    activation_TI = noise(60, 30) @ noise(30, 30, seed=3)
    weight_OI = noise(4, 30, seed=4)
    errors = {
        ridge: fit(weight_OI, activation_TI, 20, ridge).report
        for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    }
    chosen = fit(weight_OI, activation_TI, 20).report
    assert chosen is not None
    assert chosen.held_out_error == min(
        one.held_out_error for one in errors.values() if one is not None
    )
    assert len({one.held_out_error for one in errors.values() if one is not None}) == 5


def removals(channels: int, *sets: set[int]) -> list[Removal]:
    return [
        Removal(torch.tensor(sorted(set(range(channels)) - one)), torch.tensor(sorted(one)))
        for one in sets
    ]


def test_each_removal_of_a_chain_contains_those_before_it() -> None:
    assert chains(removals(6, {1, 3, 5}, {3}, {0, 2}, {3, 5}, {3})) == [[1, 4, 3, 0], [2]]


def test_the_largest_ridge_is_tried_where_no_smaller_one_beats_the_bias() -> None:
    """Few tokens of channels that have a little in common."""
    activation_TI = noise(50, 30, seed=53) + 0.5 * noise(50, 1, seed=93)
    weight_OI = noise(4, 30, seed=4)
    reports = [fit(weight_OI, activation_TI, 20, ridge).report for ridge in (1e-2, 1e-1, 1.0, None)]
    assert [one and one.ridge for one in reports] == [None, None, 1.0, 1.0]
    assert (
        reports[-1] is not None
        and reports[-1].held_out_error < 0.8 * reports[-1].held_out_error_of_bias
    )


def test_removals_of_one_projection_are_those_that_each_has_alone() -> None:
    """Nested ones, equal ones, and ones that are not nested."""
    activation_TI = noise(500, 12) @ noise(12, 12, seed=3)
    weight_OI = noise(4, 12, seed=4)
    statistics = in_parts(activation_TI[:400], activation_TI[400:])
    several = removals(12, {3}, {3, 7}, {1, 3, 7, 8, 9}, {0, 2}, {3, 7}, {11})
    for trial in (False, True):
        together = LinearCompensation().fits(weight_OI, statistics, several, trial)
        for removal, fitted in zip(several, together, strict=True):
            [alone] = LinearCompensation().fits(weight_OI, statistics, [removal], trial)
            torch.testing.assert_close(fitted.weight_OK, alone.weight_OK, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(fitted.bias_O, alone.bias_O, rtol=1e-4, atol=1e-4)
            assert (
                fitted.report is not None
                and alone.report is not None
                and fitted.report.ridge == alone.report.ridge
            )


def test_where_nothing_can_be_predicted_the_bias_stays() -> None:
    """Independent channels, few tokens: every map is noise, and on held-out tokens worse than the bias."""
    activation_TI = noise(40, 30)
    weight_OI = noise(4, 30, seed=4)
    fitted = fit(weight_OI, activation_TI, 20)
    assert fitted.report is not None and fitted.report.ridge is None
    assert fitted.report.held_out_error == fitted.report.held_out_error_of_bias
    assert torch.equal(fitted.weight_OK, weight_OI[:, :20])
    torch.testing.assert_close(fitted.bias_O, weight_OI[:, 20:] @ activation_TI[:, 20:].mean(0))


@pytest.mark.parametrize("ridge", [None, 0.0, 0.01])
@pytest.mark.parametrize(
    "case", ["few tokens", "constant", "zero", "all constant", "twins", "huge", "tiny"]
)
def test_whatever_the_channels_do_it_is_finite(case: str, ridge: float | None) -> None:
    activation_TI = peculiar(case, noise(12 if case == "few tokens" else 100, 20))
    scale = {"huge": 1e15, "tiny": 1e-15}.get(case, 1.0)
    fitted = fit(noise(4, 20, seed=4), activation_TI * scale, 12, ridge)
    assert fitted.bias_O is not None and fitted.report is not None
    assert torch.isfinite(fitted.weight_OK).all() and torch.isfinite(fitted.bias_O).all()
    assert fitted.report.held_out_error <= fitted.report.held_out_error_of_bias


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_whose_removed_units_repeat_kept_ones_stays_as_it_is(architecture: str) -> None:
    """Neurons 28 to 55 copy 0 to 27, and the last KV head with its queries the first: their outputs are known."""
    model = tiny_model(architecture)
    groups = ARCHITECTURES[architecture].num_key_value_heads
    for layer in model.model.layers:
        attention = layer.self_attn
        mlp = layer.mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.data[28:] = linear.weight.data[:28]
            if linear.bias is not None:
                linear.bias.data[28:] = linear.bias.data[:28]
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            size = linear.out_features // groups
            linear.weight.data[-size:] = linear.weight.data[:size]
            if linear.bias is not None:
                linear.bias.data[-size:] = linear.bias.data[:size]
    plan = PruningPlan((LayerPlan(tuple(range(groups - 1)), tuple(range(28))),) * 4)
    windows = tokens(windows=20)
    statistics = covariances(model, windows, 4)
    unseen = tokens(windows=8, seed=9)
    dense = perplexity(window_losses(Resident(model), unseen, 4))
    linear, bias = (
        perplexity(window_losses(Resident(changed(model, plan, one, statistics)), unseen, 4))
        for one in (LinearCompensation(1e-6), BiasCompensation())
    )
    assert linear == pytest.approx(dense, rel=2e-3)
    assert abs(bias - dense) > 10 * abs(linear - dense)
