"""The measured divergence is that of the whole pruned model, whatever else is measured in the same walk."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.data import HELD_OUT, split_windows
from flap.data.counted import counted_predictions, marked, unmarked
from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.calibration import Calibration, LayerStatistics
from flap.method.compression import BiasCompensation, Compensation, LinearCompensation
from flap.method.compression.apply import slice_out, write_layer
from flap.method.compression.fitting import fit_layer
from flap.method.search.divergence import EVERY, dense_plan, kl
from flap.models import Resident, adapt
from tests.cases import ARCHITECTURES, collect, tiny_model, tokens
from tests.helpers.compressed import COMPENSATIONS, calibrated, plan_for
from tests.helpers.placed import placed_at
from tests.helpers.plans import divergences, with_layer

# Of the six windows two are held out, 48 tokens.
WINDOWS = tokens()
FITS: list[Compensation] = [BiasCompensation(), LinearCompensation()]


@torch.no_grad()
def by_hand(dense: PreTrainedModel, pruned: PreTrainedModel, windows_NT: Tensor) -> float:
    """Of each EVERY-th prediction, or where not all tokens count of all predictions of those that do."""
    p_NTV, q_NTV = (
        one(input_ids=unmarked(windows_NT)).logits.double().softmax(-1) for one in (dense, pruned)
    )
    nats_NT = (p_NTV * (p_NTV / q_NTV).log()).sum(-1)
    counted_P = counted_predictions(windows_NT)
    return (
        (nats_NT[:, EVERY - 1 :: EVERY] if counted_P is None else nats_NT.flatten()[counted_P])
        .mean()
        .item()
    )


def tried(
    model: PreTrainedModel, plan: PruningPlan, fit: Compensation, known: list[LayerStatistics]
) -> PreTrainedModel:
    """The model pruned with the fits of trials."""
    changed = copy.deepcopy(model)
    adapter = adapt(changed)
    for i, layer in enumerate(plan.layers):
        [fits] = fit_layer(adapter.blocks(i), [layer], fit, known[i], trial=True)
        write_layer(slice_out, adapter, i, layer, fits)
    return changed


def some_plans(architecture: str = "llama-gqa") -> list[PruningPlan]:
    """One that is dense but for a block, one that is pruned everywhere, and one that differs from it by a neuron."""
    everything = dense_plan(Resident(calibrated(architecture)[0]))
    plan = plan_for(architecture)
    alone = with_layer(everything, 1, LayerPlan(everything.layers[1].attention, tuple(range(20))))
    less = with_layer(plan, 2, LayerPlan(plan.layers[2].attention, plan.layers[2].mlp[1:]))
    return [alone, plan, less]


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_divergence_of_the_whole_model(architecture: str, compensation: str) -> None:
    (model, known), fit, plans = (
        calibrated(architecture),
        COMPENSATIONS[compensation],
        some_plans(architecture),
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured = divergences(Calibration(Resident(model), WINDOWS, 3, known), fit, plans, 48)
    _, held_out_NT = split_windows(WINDOWS)
    expected = [by_hand(model, tried(model, plan, fit, known), held_out_NT) for plan in plans]
    assert min(expected) > 1e-3
    assert measured == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("num_tokens", "windows"), [(1, 1), (24, 1), (25, 2), (10**6, 2)])
def test_tokens_are_whole_windows_of_those_held_out(num_tokens: int, windows: int) -> None:
    (model, known), plan = calibrated("llama-gqa"), plan_for("llama-gqa")
    [measured] = divergences(
        Calibration(Resident(model), WINDOWS, 3, known), FITS[0], [plan], num_tokens
    )
    pruned = tried(model, plan, FITS[0], known)
    assert measured == pytest.approx(by_hand(model, pruned, WINDOWS[[0, 5]][-windows:]), rel=1e-3)


@pytest.mark.parametrize(
    "marks", [(0, -3), (-3, 24)]
)  # where they end in both windows; the last has no answer then
def test_of_a_mixture_only_the_text_with_answers_is_judged_by_them(
    marks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flap.data.counted.FEW", 1)
    (model, known), plan = calibrated("llama-gqa"), plan_for("llama-gqa")
    windows = WINDOWS.clone()
    text_N = torch.tensor([0, 0, 1, 1, 0, 1])
    for w, end in zip((0, 5), marks, strict=True):
        windows[w, :end] = -1 - windows[w, :end]
    [nats] = divergences(
        Calibration(Resident(model), windows, 3, known, text_N), FITS[0], [plan], 48
    )
    pruned = tried(model, plan, FITS[0], known)
    both = windows[:1], windows[5:] if (windows[5] >= 0).any() else WINDOWS[5:]
    assert nats == pytest.approx(max(by_hand(model, pruned, one) for one in both), rel=1e-3)


@pytest.mark.parametrize("windows_NT", [WINDOWS, WINDOWS.flip(0)], ids=["the last", "the first"])
@pytest.mark.parametrize(
    "text_N", [[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2], [3] * 6]
)
def test_the_text_that_loses_most_decides(text_N: list[int], windows_NT: Tensor) -> None:
    (model, known), plans = calibrated("llama-gqa"), some_plans()
    calibration = Calibration(Resident(model), windows_NT, 3, known, torch.tensor(text_N))
    measured = divergences(calibration, FITS[0], plans, 48)
    apart = text_N[0] != text_N[5]
    if apart:  # each text is measured, however few tokens are
        assert divergences(calibration, FITS[0], plans, 1) == measured
    for plan, nats in zip(plans, measured, strict=True):
        pruned = tried(model, plan, FITS[0], known)
        first, second = (by_hand(model, pruned, windows_NT[[w]]) for w in (0, 5))
        assert nats == pytest.approx(
            max(first, second) if apart else (first + second) / 2, rel=1e-3
        )


def test_a_model_that_loses_nothing_does_not_diverge() -> None:
    model, known = calibrated("llama-gqa")
    calibration = Calibration(Resident(model), WINDOWS, 3, known)
    dense, pruned = divergences(
        calibration, FITS[1], [dense_plan(calibration.model), plan_for("llama-gqa")], 48
    )
    assert dense < 1e-6 < pruned
    assert divergences(calibration, FITS[1], [], 48) == []


def test_predictions_that_are_not_finite_are_said() -> None:
    _, known = calibrated("llama-gqa")
    model = tiny_model("llama-gqa")
    model.model.layers[1].mlp.up_proj.weight.data[:] = float("inf")
    with pytest.raises(
        ValueError, match=r"^structure=search: predictions of a pruned model are not finite"
    ):
        divergences(
            Calibration(Resident(model), WINDOWS, 3, known), FITS[0], [plan_for("llama-gqa")], 48
        )


def calibration_of(placement: str, directory: Path) -> Calibration:
    placed = placed_at(placement, directory)
    return Calibration(placed, WINDOWS, 4, collect(placed, WINDOWS, 4))


@pytest.mark.parametrize("fit", FITS, ids=["bias", "linear"])
def test_plans_in_one_walk_have_what_each_has_alone_at_any_placement(
    fit: Compensation, model_dir: Path
) -> None:
    """Equal plans, too. Bit for bit, but for fits that share a factor, in which channels have another order."""
    plans = some_plans()
    found = {}
    for placement in ("device", "stream"):
        calibration = calibration_of(placement, model_dir)
        alone = [divergences(calibration, fit, [plan], 48)[0] for plan in plans]
        together, more = (
            divergences(calibration, fit, some, 48) for some in (plans, [*plans[::-1], plans[1]])
        )
        rounding = 1e-5 if fit.needs_covariance else 0
        assert together == pytest.approx(alone, rel=rounding, abs=0)
        assert more == pytest.approx([*alone[::-1], alone[1]], rel=rounding, abs=0)
        found[placement] = [*alone, *together, *more]
    assert found["device"] == found["stream"] and min(found["device"]) > 0


def test_of_a_large_vocabulary_the_model_itself_diverges_by_nothing() -> None:
    """Two sums over 6 million terms that differ by rounding would give 0.001 nats a token."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = 4 * torch.randn(128, 50_000, generator=generator)
    log_p_TV = logits_TV.log_softmax(-1)
    assert abs(kl(log_p_TV.exp(), log_p_TV, logits_TV)) / 128 < 1e-5
    other_TV = logits_TV + 0.01 * torch.randn(logits_TV.shape, generator=generator)
    p_TV = logits_TV.double().softmax(-1)
    q_TV = other_TV.double().softmax(-1)
    expected = (p_TV * (p_TV / q_TV).log()).sum().item()
    assert kl(log_p_TV.exp(), log_p_TV, other_TV) == pytest.approx(expected, rel=1e-3)


def test_where_not_all_tokens_count_it_is_that_of_all_predictions_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flap.data.counted.FEW", 1)
    model, known = calibrated("llama-gqa")
    counted = torch.rand(WINDOWS.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    counted[0] = False  # a window that is held out and has no answer
    windows = marked(WINDOWS, counted)
    calibration = Calibration(Resident(model), windows, 4, known)
    plans = some_plans()
    found = divergences(calibration, BiasCompensation(), plans, 1000)
    for plan, nats in zip(plans, found, strict=True):
        pruned = tried(model, plan, BiasCompensation(), known)
        assert nats == pytest.approx(by_hand(model, pruned, windows[::HELD_OUT]), rel=1e-3)
