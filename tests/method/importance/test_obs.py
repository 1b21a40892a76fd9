"""OBS: by hand on two channels; otherwise what each removal costs is measured by fitting what stays."""

import pytest
import torch
from torch import Tensor

from flap.method.calibration import Statistics
from flap.method.importance import OBS
from tests.helpers.compressed import in_parts, peculiar


def known(activation_TI: Tensor) -> Statistics:
    return in_parts(activation_TI[::2], activation_TI[1::2])


def correlated(channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(400, channels, generator=generator) @ torch.randn(
        channels, channels, generator=generator
    )


def remaining_error(weight_OI: Tensor, activation_TI: Tensor, kept: list[int]) -> float:
    """Of the outputs, by ordinary least squares on the kept channels and a constant."""
    wanted_TO = (activation_TI @ weight_OI.T).double()
    given = torch.cat([activation_TI[:, kept], torch.ones(len(activation_TI), 1)], dim=1).double()
    found = given @ torch.linalg.lstsq(given, wanted_TO).solution
    return (found - wanted_TO).square().sum(1).mean().item()


def test_by_hand() -> None:
    """Variances 1, covariance 1/2, means 3: H⁻¹ = [[4, -2], [-2, 4]] / 3."""
    root = 3**0.5 / 2
    deviations_TI = torch.tensor(
        [[1.0, 0.5 + root], [1.0, 0.5 - root], [-1.0, -0.5 + root], [-1.0, -0.5 - root]]
    )
    weight_OI = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    score_I = OBS(ridge=1e-9).score(weight_OI, known(deviations_TI + 3))
    # channel 0 costs 1 · 3/4; then channel 1 has taken half of it over: (2 + 1/2)² + 1²
    assert score_I.tolist() == pytest.approx([0.75, 7.25], rel=1e-5)


def test_the_first_unit_to_leave_is_the_one_whose_removal_leaves_the_least_error() -> None:
    for seed in range(5):
        activation_TI = correlated(6, seed)
        weight_OI = correlated(6, seed + 100)[:4]
        errors = [
            remaining_error(weight_OI, activation_TI, [k for k in range(6) if k != j])
            for j in range(6)
        ]
        score_I = OBS(ridge=1e-9).score(weight_OI, known(activation_TI))
        assert int(score_I.argmin()) == min(range(6), key=errors.__getitem__)
        assert score_I.min().item() == pytest.approx(min(errors), rel=1e-3)


def test_an_attention_unit_costs_what_all_its_channels_cost_together() -> None:
    activation_TI = correlated(6)
    weight_OI = correlated(6, seed=100)[:4]
    columns_UC = torch.tensor([[0, 3], [1, 4], [2, 5]])
    score_UC = OBS(ridge=1e-9).score_units(weight_OI, known(activation_TI), columns_UC)
    pairs = columns_UC.tolist()
    errors = [
        remaining_error(weight_OI, activation_TI, sorted(set(range(6)) - set(pair)))
        for pair in pairs
    ]
    first = int(score_UC.sum(1).argmin())
    assert first == min(range(3), key=errors.__getitem__)
    assert score_UC.sum(1).min().item() == pytest.approx(min(errors), rel=1e-3)
    assert torch.equal(score_UC[:, 0], score_UC[:, 1])


def test_the_costs_of_those_that_leave_add_up_to_the_error_that_is_left() -> None:
    """As long as costs rise; where one falls, the unit scores what those before it cost."""
    weight_OI = correlated(8, seed=100)[:4]
    activation_TI = 10 ** (torch.arange(8) / 4) * torch.randn(
        400, 8, generator=torch.Generator().manual_seed(0)
    )
    activation_TI += correlated(8) / 10
    score_I = OBS(ridge=1e-9).score(weight_OI, known(activation_TI))
    order = score_I.argsort(stable=True).tolist()
    for count in (1, 3, 5):
        left = remaining_error(weight_OI, activation_TI, sorted(order[count:]))
        assert score_I[order[:count]].sum().item() == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize(
    "case", ["few tokens", "constant", "zero", "all constant", "twins", "huge", "tiny"]
)
def test_whatever_the_channels_do_it_is_finite(case: str) -> None:
    activation_TI = peculiar(case, correlated(20)[: 6 if case == "few tokens" else 400])
    scale = {"huge": 1e12, "tiny": 1e-12}.get(case, 1.0)
    score_I = OBS().score(correlated(20, seed=100)[:4], known(activation_TI * scale))
    assert torch.isfinite(score_I).all() and (score_I >= 0).all()
    if case in ("constant", "zero"):
        assert score_I[::3].max() < score_I[1::3].min()


def test_a_ridge_that_rounding_swallows_is_refused_where_the_covariance_is_singular() -> None:
    activation_TI = peculiar("twins", correlated(20))
    with pytest.raises(
        ValueError, match=r"^metric\.ridge=1e-20: too small, even times 1000; try 0\.01$"
    ):
        OBS(ridge=1e-20).score(correlated(20, seed=100)[:4], known(activation_TI))


def test_where_activations_need_a_larger_ridge_it_is_taken_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    activation_TI = correlated(40)
    weight_OI = correlated(40, seed=100)[:4]
    activation_TI[::200] *= (
        1e5  # the rounding of the covariance is larger than the variance of other tokens
    )
    found = OBS(ridge=1e-7).score(weight_OI, known(activation_TI))
    assert [record.getMessage() for record in caplog.records] == [
        f"metric.ridge={ridge} is too small for these 40 channels; trying {larger}"
        for ridge, larger in (("1e-07", "1e-06"), ("1e-06", "1e-05"))
    ]
    assert torch.equal(found, OBS(ridge=1e-7 * 10.0**2).score(weight_OI, known(activation_TI)))
    assert torch.isfinite(found).all()


def test_what_remains_is_packed_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = known(correlated(40))
    weight_OI = correlated(40, seed=100)[:8]
    at_once = OBS().score(weight_OI, statistics)
    monkeypatch.setattr("flap.method.importance.obs.STRIP", 3)
    assert torch.equal(OBS().score(weight_OI, statistics), at_once)


def test_a_whole_expert_costs_its_output_error_with_the_ridge_and_without_biases() -> None:
    """As docs/method.md says: tr(W H Wᵀ), where H has the ridge's term."""
    activation_TI = correlated(6)
    weight_OI = correlated(6, seed=1)[:3]
    [score_C] = OBS(ridge=0.1).score_units(
        weight_OI, in_parts(activation_TI, activation_TI), torch.arange(6)[None]
    )
    covariance_II = activation_TI.T.cov(correction=0)
    hessian_II = covariance_II + 0.1 * covariance_II.diagonal().mean() * torch.eye(6)
    assert score_C.sum().item() == pytest.approx(
        (weight_OI @ hessian_II @ weight_OI.T).trace().item(), rel=1e-4
    )
