"""What is added to a compressed block: least squares by hand, chosen on held-out tokens, never worse, always finite."""

import pytest
import torch
from torch import Tensor

from flap.calibration import moments
from flap.compression.correction import Addition, correct
from flap.compression.linear import LinearCompensation

RIDGES = LinearCompensation.correction_ridges
HELD_OUT = slice(None, None, 5)


def noise(num_tokens: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, channels, generator=torch.Generator().manual_seed(seed))


def split(tokens: Tensor) -> tuple[Tensor, Tensor]:
    held_out = torch.arange(len(tokens)) % 5 == 0
    return tokens[~held_out], tokens[held_out]


def corrected(x_TK: Tensor, residual_TO: Tensor, ridges: tuple[float, ...] = RIDGES) -> Addition:
    fitting, held_out = (moments(part, covariance=True) for part in split(torch.cat([x_TK, residual_TO], 1)))
    return correct(fitting, held_out, x_TK.shape[1], ridges)


def ridge_regression(x_TK: Tensor, y_TO: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """By least squares on tokens with rows added that pull the slope to zero."""
    mean_K, mean_O = x_TK.double().mean(0), y_TO.double().mean(0)
    centred_TK = x_TK.double() - mean_K
    pull = (ridge * len(x_TK) * centred_TK.square().mean()).sqrt() * torch.eye(x_TK.shape[1])
    rows = torch.cat([centred_TK, pull]), torch.cat([y_TO.double() - mean_O, torch.zeros(len(pull), y_TO.shape[1])])
    slope_OK = torch.linalg.lstsq(*rows).solution.T
    return slope_OK, mean_O - slope_OK @ mean_K


def error(x_TK: Tensor, y_TO: Tensor, slope_OK: Tensor, shift_O: Tensor) -> float:
    return (y_TO - x_TK.double() @ slope_OK.T - shift_O).square().sum(1).mean().item()


def test_it_is_ridge_regression_with_the_ridge_that_does_best_on_held_out_tokens() -> None:
    chosen = set()
    for seed, strength in enumerate((30.0, 10.0, 3.0, 1.0)):
        x_TK = noise(150, 20, seed) @ noise(20, 20, seed + 10) + 1.0
        residual_TO = strength * x_TK @ noise(20, 4, seed + 20) / 20 + 2 * noise(150, 4, seed + 30) + 0.5
        found = corrected(x_TK, residual_TO)
        (x, unseen_x), (y, unseen_y) = split(x_TK), split(residual_TO)
        errors = {ridge: error(unseen_x, unseen_y, *ridge_regression(x, y, ridge)) for ridge in RIDGES}
        ridge = min(errors, key=errors.__getitem__)
        assert found.correction.ridge == ridge
        assert found.correction.held_out_error == pytest.approx(errors[ridge], rel=1e-4)
        assert found.correction.held_out_error_before == pytest.approx(unseen_y.square().sum(1).mean().item(), rel=1e-4)
        slope_OK, shift_O = ridge_regression(x_TK, residual_TO, ridge)
        torch.testing.assert_close(found.slope_OK.double(), slope_OK, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(found.shift_O.double(), shift_O, atol=1e-4, rtol=1e-3)
        chosen.add(ridge)
    assert len(chosen) > 1


def test_a_constant_needs_no_inputs_and_is_the_mean_of_what_lacks() -> None:
    residual_TO = noise(50, 4) + 3.0
    fitting, held_out = map(moments, split(residual_TO))
    slope_OK, shift_O, correction = correct(fitting, held_out, 0, ())
    assert slope_OK.shape == (4, 0)
    torch.testing.assert_close(shift_O, residual_TO.mean(0))
    assert correction.ridge is None and correction.held_out_error < correction.held_out_error_before


def test_where_no_map_helps_the_constant_stays() -> None:
    """Few tokens, many channels, nothing to learn but the mean."""
    found = corrected(noise(40, 30), 0.01 * noise(40, 4, seed=1) + 5.0, ridges=(1e-4,))
    assert found.correction.ridge is None and not found.slope_OK.any()
    torch.testing.assert_close(found.shift_O, (0.01 * noise(40, 4, seed=1) + 5.0).mean(0))


def test_where_not_even_a_constant_helps_nothing_changes() -> None:
    residual_TO = noise(40, 4, seed=1)
    residual_TO[HELD_OUT] -= residual_TO[HELD_OUT].mean(0)  # a mean other than zero is worse
    found = corrected(noise(40, 30), residual_TO, ridges=(1e-4,))
    assert not found.slope_OK.any() and not found.shift_O.any()
    assert found.correction.ridge is None
    assert found.correction.held_out_error == found.correction.held_out_error_before


def test_where_nothing_lacks_nothing_changes() -> None:
    found = corrected(noise(40, 10), torch.zeros(40, 4))
    assert not found.slope_OK.any() and not found.shift_O.any()
    assert found.correction == (None, 0.0, 0.0)


@pytest.mark.parametrize("case", ["few tokens", "constant", "zero", "all constant", "twins", "huge", "tiny"])
def test_whatever_the_channels_do_it_is_finite_and_no_worse(case: str) -> None:
    num_tokens = 12 if case == "few tokens" else 100
    x_TK, residual_TO = noise(num_tokens, 20), noise(num_tokens, 4, seed=1) + 1.0
    if case in ("constant", "zero"):
        x_TK[:, ::3] = 5.0 if case == "constant" else 0.0
    if case == "all constant":
        x_TK[:] = 2.0
    if case == "twins":
        x_TK[:, 1::2] = x_TK[:, ::2]
    scale = {"huge": 1e15, "tiny": 1e-15}.get(case, 1.0)
    found = corrected(x_TK * scale, residual_TO * scale)
    assert torch.isfinite(found.slope_OK).all() and torch.isfinite(found.shift_O).all()
    assert found.correction.held_out_error <= found.correction.held_out_error_before
