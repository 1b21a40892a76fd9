"""`Elimination` gives the same regression slopes as solving each regression directly.

The regressions predict removed channels from kept channels. `Elimination` factorises the covariance
only once for all numbers of removed channels.
"""

import pytest
import torch
from torch import Tensor

from flap.method.calibration import Statistics
from flap.method.calibration.covariance import Covariance
from flap.method.calibration.symmetric import STRIP
from flap.method.compression.compensation import Removal
from flap.method.compression.elimination import OUTPUTS, Elimination
from flap.method.compression.linear import RIDGES
from tests.helpers.compressed import noise, symmetric


def covariance_of(covariance_II: Tensor) -> Covariance:
    mean_I = torch.zeros(len(covariance_II))
    return Covariance.of(Statistics(1, mean_I, mean_I, symmetric(covariance_II)))


def removal(order_I: Tensor, removed: int) -> Removal:
    """Return the `Removal` of the last `removed` channels of `order_I`."""
    kept_K, pruned_P = order_I.split([len(order_I) - removed, removed])
    return Removal(kept_K.sort().values, pruned_P.sort().values)


def assert_slopes(
    weight_OI: Tensor, covariance_II: Tensor, ridge: float, counts: tuple[int, ...]
) -> None:
    """Check the slopes of `Elimination` against direct solutions of the regressions in float64.

    counts: the numbers of removed channels for which slopes are checked.
    """
    channels = len(covariance_II)
    order_I = torch.randperm(channels, generator=torch.Generator().manual_seed(6))
    elimination = Elimination.of(covariance_of(covariance_II), order_I, ridge)

    wide_II = covariance_II.double()
    diagonal = wide_II.diagonal().mean()
    hessian_II = wide_II + ridge * diagonal * torch.eye(channels)
    for removed in counts:
        kept_K, pruned_P = removal(order_I, removed)
        hessian_KK = hessian_II[kept_K][:, kept_K]
        covariance_KP = wide_II[kept_K][:, pruned_P]
        map_KP = torch.linalg.solve(hessian_KK, covariance_KP)
        expected_OK = weight_OI[:, pruned_P].double() @ map_KP.T

        slope_OK = elimination.slope(weight_OI, removal(order_I, removed))
        assert slope_OK is not None
        assert slope_OK.dtype == torch.float32
        assert (slope_OK - expected_OK).norm() <= 1e-5 * expected_OK.norm()


def directions(num_tokens: int, number: int, channels: int) -> Tensor:
    """Return activations (tokens, channels) that vary in only `number` directions."""
    return noise(num_tokens, number) @ noise(number, channels, seed=3)


ORDINARY = directions(500, 80, 80)
# Apart from small noise, the activations HARD vary in only ten directions. The scales of their
# channels differ by a factor of up to a million.
SMALL_NOISE = 0.01 * noise(300, 80, seed=5)
HARD = (directions(300, 10, 80) + SMALL_NOISE) * torch.logspace(-3, 3, 80)


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("activation_TI", [ORDINARY, HARD], ids=["ordinary", "hard"])
def test_one_factor_serves_every_number_of_channels(ridge: float, activation_TI: Tensor) -> None:
    weight_OI = noise(4, 80, seed=4) / activation_TI.std(0)
    covariance_II = activation_TI.T.cov(correction=0)
    assert_slopes(weight_OI, covariance_II, ridge, (1, 10, 40, 60, 79))


def test_slopes_are_solved_in_blocks_of_channels_and_outputs() -> None:
    channels = 2 * STRIP + 50
    activation_TI = directions(800, 60, channels) + noise(800, channels, seed=5)
    weight_OI = noise(OUTPUTS + 3, channels, seed=4)
    counts = (50, 51, 2 * STRIP, channels - 1)
    assert_slopes(weight_OI, activation_TI.T.cov(), 1e-2, counts)


@pytest.mark.parametrize(
    ("ridge", "precision"),
    [
        (1e-3, torch.float32),
        (1e-9, torch.float64),
    ],
)
def test_float64_has_a_factor_where_float32_has_none(ridge: float, precision: torch.dtype) -> None:
    """If the covariance plus the ridge cannot be factorised in float32, float64 is used.

    The activations are small integers, whose products are exact in float32. So the covariance has
    exactly rank six.
    """
    factor_TD = (2 * noise(200, 6)).round()
    direction_DI = (2 * noise(6, 20, seed=3)).round()
    activation_TI = factor_TD @ direction_DI
    covariance = covariance_of(activation_TI.T @ activation_TI)
    elimination = Elimination.of(covariance, torch.arange(20), ridge, quick=True)
    assert elimination.strips[0].dtype == precision
    assert elimination.num_channels == 20


def test_a_singular_covariance_has_slopes_of_as_many_channels_as_are_independent() -> None:
    covariance_II = directions(200, 6, 20).T.cov()
    order_I = torch.arange(20)
    weight_OI = noise(4, 20)
    elimination = Elimination.of(covariance_of(covariance_II), order_I, ridge=0.0)
    assert elimination.slope(weight_OI, removal(order_I, 19)) is not None
    assert elimination.slope(weight_OI, removal(order_I, 15)) is not None
    assert elimination.slope(weight_OI, removal(order_I, 1)) is None


def test_constant_channels_have_no_slope() -> None:
    order_I = torch.arange(20)
    weight_OI = noise(4, 20)
    covariance = covariance_of(torch.zeros(20, 20))
    elimination = Elimination.of(covariance, order_I, ridge=0.1)
    assert elimination.slope(weight_OI, removal(order_I, 19)) is None
