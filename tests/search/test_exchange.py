"""Units of a plan change sides by gradients at the pruned model."""

import copy
import math

import pytest
import torch
from torch import Tensor

from flap.allocation import PruningPlan, price
from flap.calibration import Calibration
from flap.compression import LinearCompensation
from flap.compression.apply import slice_out, write_layer
from flap.compression.fitting import fit_layer
from flap.models import PlacedModel, Resident, adapt
from flap.models.forward import final_states
from flap.search.effects import BlockEffects, add_effects, pruned_by
from flap.search.exchange import effects_of, exchange
from flap.search.residuals import Residuals
from flap.search.sides import expected
from tests.cases import ARCHITECTURES, MIXTURES, tiny_model, tokens
from tests.helpers.compressed import calibrated, covariances, plan_for
from tests.helpers.ratios import assert_meets


@pytest.mark.parametrize("size", [1, 3])
def test_a_residual_is_what_least_squares_gain_with_a_unit(size: int) -> None:
    """Against two least-squares fits, with the unit and without it, in float64."""
    generator = torch.Generator().manual_seed(0)
    channels, outputs = 6 * size, 5
    mixing = torch.randn(channels, channels, generator=generator).double()
    x_TI = torch.randn(500, channels, generator=generator).double() @ mixing
    x_TI -= x_TI.mean(0)
    weight_OI = torch.randn(outputs, channels, generator=generator).double()
    columns_UC, kept_U = torch.arange(channels).reshape(6, size), torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    found = Residuals.of(weight_OI, x_TI.T @ x_TI / 500, x_TI.new_zeros(channels), columns_UC, kept_U)

    def fitted(kept_U: Tensor) -> Tensor:
        kept_TK = x_TI[:, columns_UC[kept_U].flatten()]
        return kept_TK @ torch.linalg.lstsq(kept_TK, x_TI @ weight_OI.T).solution

    torch.testing.assert_close(x_TI @ found.weight_OI.T, fitted(kept_U))
    residual_TI = x_TI @ found.map_II.T
    for u, columns_C in enumerate(columns_UC):
        other_U = kept_U.clone()
        other_U[u] = ~kept_U[u]
        gain_TO = (fitted(kept_U) - fitted(other_U)) * (1 if kept_U[u] else -1)
        torch.testing.assert_close(residual_TI[:, columns_C] @ found.slope_OI[:, columns_C].T, gain_TO)
        torch.testing.assert_close(found.error_U[u], gain_TO.square().sum() / 500)


def blocks_of(model: PlacedModel, plan: PruningPlan, windows_NT: Tensor) -> list[BlockEffects]:
    """The blocks of a pruned model, with what exchanges need of the windows."""
    return list(effects_of(Calibration(model, [windows_NT], 3, []), plan))


@torch.no_grad()
def divergence(model: PlacedModel, blocks: list[BlockEffects], windows_NT: Tensor) -> float:
    """KL(dense ‖ pruned), summed over all tokens."""
    p_PV = model.adapter.logits(final_states(model.adapter, windows_NT)).double().softmax(-1)
    with pruned_by(blocks):
        q_PV = model.adapter.logits(final_states(model.adapter, windows_NT)).double().softmax(-1)
    return (p_PV * (p_PV / q_PV).log()).sum().item()


@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen2-gqa-tied"])
def test_an_effect_is_the_slope_of_the_divergence(architecture: str) -> None:
    """Against the divergence where a little of S_u r_u is added to the output, and where as much is taken away."""
    model, windows_NT = Resident(copy.deepcopy(calibrated(architecture)[0])), tokens()
    model.model.requires_grad_(False)
    blocks = blocks_of(model, plan_for(architecture), windows_NT)
    add_effects(model, blocks, windows_NT)
    for k, u in ((2, 0), (2, 1), (3, 5), (3, 6)):
        one, step = blocks[k], 1e-2
        columns_C, nats = one.block.columns_UC[u], []
        mean_I, weight_OI, bias_O = one.mean_I, one.weight_OI, one.bias_O
        added_OI = one.slope_OI[:, columns_C] @ one.map_II[columns_C]
        for sign in (1, -1):
            one.weight_OI, one.bias_O = weight_OI + sign * step * added_OI, bias_O - sign * step * added_OI @ mean_I
            nats.append(divergence(model, blocks, windows_NT))
        one.weight_OI, one.bias_O = weight_OI, bias_O
        assert one.sums["effect"][u].item() == pytest.approx((nats[0] - nats[1]) / (2 * step), rel=0.05, abs=1e-4)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in MIXTURES])
@torch.no_grad()
def test_it_runs_as_the_sliced_model_with_the_fits_of_trials(architecture: str) -> None:
    windows_NT, (model, _) = tokens(windows=24), calibrated(architecture)  # enough of them for maps in any case
    plan, sliced, known = plan_for(architecture), copy.deepcopy(model), covariances(model, windows_NT, 3)
    for i, layer in enumerate(plan.layers):
        [fits] = fit_layer(adapt(sliced).blocks(i), [layer], LinearCompensation(), known[i], trial=True)
        write_layer(slice_out, adapt(sliced), i, layer, fits)
    placed = Resident(copy.deepcopy(model))
    with pruned_by(blocks_of(placed, plan, windows_NT)):
        found = placed.model(input_ids=tokens()).logits
    torch.testing.assert_close(found, sliced(input_ids=tokens()).logits, rtol=1e-3, atol=1e-3)


def test_worth_beyond_the_trend_counts_as_far_as_it_is_no_noise() -> None:
    """Worth 1, 2, 4, 3, 5 by rising error: the trend is 1, 2, 3.5, 3.5, 5, and of the rest half is left."""
    worth_U, error_U = torch.tensor([1.0, 2.0, 4.0, 3.0, 5.0]), torch.arange(5.0)
    trend_U = torch.tensor([1.0, 2.0, 3.5, 3.5, 5.0])
    halved_U = expected(worth_U, torch.full((5,), 0.05), error_U)  # the rest's mean square is 0.1
    torch.testing.assert_close(halved_U, (worth_U + trend_U) / 2)
    torch.testing.assert_close(expected(worth_U, torch.zeros(5), error_U), worth_U)
    torch.testing.assert_close(expected(worth_U, torch.ones(5), error_U), trend_U)


@pytest.mark.parametrize(
    ("architecture", "ratio"), [("llama-gqa", 0.5), pytest.param("qwen2-gqa-tied", 0.2, marks=pytest.mark.long)]
)
def test_a_random_plan_gets_better_and_removes_as_much(architecture: str, ratio: float) -> None:
    model = Resident(copy.deepcopy(calibrated(architecture)[0]))
    plan, budget = plan_for(architecture, "random", ratio=ratio), price(model.adapter, ratio)
    calibration, fewest = Calibration(model, [tokens(windows=256, length=96)], 8, []), [1] * 2 * len(plan.layers)
    found = exchange(calibration, plan, budget, fewest, steps=20)
    assert found.nats_after < found.nats_before and found.units > 0
    assert_meets(found.plan, model.model, ratio)
    assert all(layer.attention and layer.mlp for layer in found.plan.layers)
    assert exchange(calibration, plan, budget, fewest, steps=20) == found
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.model.parameters())


def test_a_length_may_have_a_single_window() -> None:
    model, plan = Resident(tiny_model("llama-gqa")), plan_for("llama-gqa")
    windows = [tokens(windows=16), tokens(windows=1, length=32)]  # which is held out
    found = exchange(Calibration(model, windows, 8, []), plan, price(model.adapter, 0.5), [1] * 8, steps=1)
    assert math.isfinite(found.nats_before) and found.nats_after <= found.nats_before


def test_a_block_with_constant_inputs_is_no_obstacle() -> None:
    model = tiny_model("llama-gqa")  # without biases: the attention of layer 1 puts out zeros
    torch.nn.init.zeros_(model.model.layers[1].self_attn.v_proj.weight)
    placed, plan = Resident(model), plan_for("llama-gqa")
    calibration = Calibration(placed, [tokens(windows=64)], 8, [])
    found = exchange(calibration, plan, price(placed.adapter, 0.5), [1] * 8, steps=2)
    assert math.isfinite(found.nats_before) and found.nats_after <= found.nats_before
