"""structure=search measures KL(dense ‖ pruned), the divergence of the predictions.

A plan says which heads and neurons each layer keeps. The divergence of a plan does not depend on
other plans that are measured in the same pass through the layers.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.data import HELD_OUT, Batch, split_windows
from flap.method.allocation import PruningPlan
from flap.method.calibration import Calibration, LayerStatistics
from flap.method.compression import BiasCompensation, Compensation, LinearCompensation
from flap.method.compression.apply import slice_out, write_layer
from flap.method.compression.fitting import fit_layer
from flap.method.search.divergence import EVERY, dense_plan, kl
from flap.models import Resident, adapt
from tests.cases import ARCHITECTURES, collect, tiny_model, tokens
from tests.helpers.compressed import COMPENSATIONS, calibrated, plan_for
from tests.helpers.marks import quick
from tests.helpers.placed import placed_at
from tests.helpers.plans import divergences, with_layer

# The batch has six windows of 24 tokens. The first and the last window are held out, and have 48
# tokens together.
WINDOWS = Batch.of(tokens())
FITS: list[Compensation] = [BiasCompensation(), LinearCompensation()]


def kl_divergence(p_V: Tensor, q_V: Tensor) -> Tensor:
    """Return KL(p ‖ q), where p and q are probabilities over the last dimension."""
    nats_V = p_V * (p_V / q_V).log()
    return nats_V.sum(-1)


@torch.no_grad()
def by_hand(dense: PreTrainedModel, pruned: PreTrainedModel, windows: Batch) -> float:
    """Return the mean of KL(dense ‖ pruned) over every fourth prediction.

    If the mask of `windows` is false for some tokens, return the mean over all predictions of
    tokens for which the mask is true.
    """
    p_NTV = dense(input_ids=windows.tokens_NT).logits.double().softmax(-1)
    q_NTV = pruned(input_ids=windows.tokens_NT).logits.double().softmax(-1)
    nats_NT = kl_divergence(p_NTV, q_NTV)
    predicted_P = windows.predicted_P
    if predicted_P is not None:
        return nats_NT.flatten()[predicted_P].mean().item()
    every_fourth = nats_NT[:, EVERY - 1 :: EVERY]
    return every_fourth.mean().item()


def tried(
    model: PreTrainedModel,
    plan: PruningPlan,
    compensation: Compensation,
    statistics: list[LayerStatistics],
) -> PreTrainedModel:
    """Return a copy of the model, pruned and compensated as when structure=search tries a plan."""
    changed = copy.deepcopy(model)
    adapter = adapt(changed)
    for i, layer in enumerate(plan.layers):
        blocks = adapter.blocks(i)
        [fits] = fit_layer(blocks, [layer], compensation, statistics[i], trial=True)
        write_layer(slice_out, adapter, i, layer, fits)
    return changed


def some_plans(architecture: str = "llama-gqa") -> list[PruningPlan]:
    """Return three plans: the first prunes one MLP, and the other two prune all layers.

    The third plan keeps one neuron fewer than the second plan.
    """
    model, _ = calibrated(architecture)
    dense = dense_plan(Resident(model))
    plan = plan_for(architecture)

    few_neurons = dense.layers[1]._replace(mlp=tuple(range(20)))
    one_block = with_layer(dense, 1, few_neurons)

    layer = plan.layers[2]
    one_neuron_less = layer._replace(mlp=layer.mlp[1:])
    return [one_block, plan, with_layer(plan, 2, one_neuron_less)]


def calibration_of(model: PreTrainedModel, statistics: list[LayerStatistics]) -> Calibration:
    return Calibration(Resident(model), WINDOWS, 3, statistics)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("architecture", quick(3, ARCHITECTURES))
def test_it_is_the_divergence_of_the_whole_model(architecture: str, compensation: str) -> None:
    model, statistics = calibrated(architecture)
    fit = COMPENSATIONS[compensation]
    plans = some_plans(architecture)
    before = copy.deepcopy(model.state_dict())
    measured = divergences(calibration_of(model, statistics), fit, plans, 48)

    _, held_out = split_windows(WINDOWS)
    expected = []
    for plan in plans:
        pruned = tried(model, plan, fit, statistics)
        expected.append(by_hand(model, pruned, held_out))
    assert min(expected) > 1e-3
    assert measured == pytest.approx(expected, rel=1e-3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("num_tokens", "judged"),
    [
        (1, [5]),
        (24, [5]),
        (25, [0, 5]),
        (10**6, [0, 5]),
    ],
)
def test_tokens_are_rounded_up_to_whole_held_out_windows(
    num_tokens: int, judged: list[int]
) -> None:
    model, statistics = calibrated("llama-gqa")
    plan = plan_for("llama-gqa")
    [measured] = divergences(calibration_of(model, statistics), FITS[0], [plan], num_tokens)
    pruned = tried(model, plan, FITS[0], statistics)
    expected = by_hand(model, pruned, WINDOWS[judged])
    assert measured == pytest.approx(expected, rel=1e-3)


# In each case, the mask `judged_NT` is false for the tokens before `first_end` in the first window,
# and for the tokens before `last_end` in the last window. In the second case, `last_end` is 24, so
# the mask is false for all tokens of the last window.
@pytest.mark.parametrize(("first_end", "last_end"), [(0, -3), (-3, 24)])
def test_of_a_mixture_only_the_text_with_answers_is_judged_by_them(
    first_end: int, last_end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flap.data.batch.FEW", 1)
    model, statistics = calibrated("llama-gqa")
    plan = plan_for("llama-gqa")
    judged_NT = torch.ones_like(WINDOWS.mask_NT)
    judged_NT[0, :first_end] = False
    judged_NT[5, :last_end] = False
    windows = Batch(WINDOWS.tokens_NT, judged_NT)
    text_N = torch.tensor([0, 0, 1, 1, 0, 1])
    calibration = Calibration(Resident(model), WINDOWS, 3, statistics, text_N, judged_NT)
    [nats] = divergences(calibration, FITS[0], [plan], 48)

    pruned = tried(model, plan, FITS[0], statistics)
    first = by_hand(model, pruned, windows[:1])
    last_has_answers = last_end < 0
    judging = windows if last_has_answers else WINDOWS
    last = by_hand(model, pruned, judging[5:])
    assert nats == pytest.approx(max(first, last), rel=1e-3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("texts", ["011001", "100000", "000002", "333333"])
def test_the_text_that_loses_most_decides(texts: str, reverse: bool) -> None:
    """If the held-out windows come from two texts, the larger of the two divergences counts.

    Each digit of `texts` names the text of a window. The first window and the last window are held
    out.
    """
    model, statistics = calibrated("llama-gqa")
    plans = some_plans()
    order = [5, 4, 3, 2, 1, 0] if reverse else [0, 1, 2, 3, 4, 5]
    windows = WINDOWS[order]
    text_N = torch.tensor([int(digit) for digit in texts])
    calibration = Calibration(Resident(model), windows, 3, statistics, text_N)
    measured = divergences(calibration, FITS[0], plans, 48)
    two_texts = texts[0] != texts[-1]
    # At least one window of each text is measured, even if only one token is requested.
    if two_texts:
        assert divergences(calibration, FITS[0], plans, 1) == measured
    for plan, nats in zip(plans, measured, strict=True):
        pruned = tried(model, plan, FITS[0], statistics)
        first = by_hand(model, pruned, windows[[0]])
        last = by_hand(model, pruned, windows[[5]])
        expected = max(first, last) if two_texts else (first + last) / 2
        assert nats == pytest.approx(expected, rel=1e-3)


def test_a_model_that_loses_nothing_does_not_diverge() -> None:
    model, statistics = calibrated("llama-gqa")
    calibration = calibration_of(model, statistics)
    plans = [dense_plan(calibration.model), plan_for("llama-gqa")]
    dense, pruned = divergences(calibration, FITS[1], plans, 48)
    assert dense < 1e-6 < pruned
    assert divergences(calibration, FITS[1], [], 48) == []


def test_predictions_that_are_not_finite_are_refused() -> None:
    _, statistics = calibrated("llama-gqa")
    model = tiny_model("llama-gqa")
    model.model.layers[1].mlp.up_proj.weight.data[:] = float("inf")
    calibration = calibration_of(model, statistics)
    refusal = r"^structure=search: predictions of a pruned model are not finite"
    with pytest.raises(ValueError, match=refusal):
        divergences(calibration, FITS[0], [plan_for("llama-gqa")], 48)


@pytest.mark.parametrize("fit", FITS, ids=["bias", "linear"])
def test_plans_in_one_walk_have_what_each_has_alone_at_any_placement(
    fit: Compensation, model_dir: Path
) -> None:
    """Plans that are measured in one pass get the same divergences as in separate passes.

    Equal plans get equal divergences. With linear compensation, several plans share the
    Cholesky factor of a covariance, which changes their divergences by rounding.
    """
    plans = some_plans()
    rounding = 1e-5 if fit.needs_covariance else 0
    by_placement = {}
    for placement in ("device", "stream"):
        placed = placed_at(placement, model_dir)
        calibration = Calibration(placed, WINDOWS, 4, collect(placed, WINDOWS.tokens_NT, 4))
        alone = []
        for plan in plans:
            alone += divergences(calibration, fit, [plan], 48)
        together = divergences(calibration, fit, plans, 48)
        assert together == pytest.approx(alone, rel=rounding, abs=0)

        [first, second, third] = plans
        more = divergences(calibration, fit, [third, second, first, second], 48)
        expected = [alone[2], alone[1], alone[0], alone[1]]
        assert more == pytest.approx(expected, rel=rounding, abs=0)
        by_placement[placement] = alone + together + more
    assert by_placement["device"] == by_placement["stream"]
    assert min(by_placement["device"]) > 0


def test_with_a_large_vocabulary_a_model_does_not_diverge_from_itself() -> None:
    """The sum of p (log p - log q) is nearly 0 if q equals p, although it has 6 million terms."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = 4 * torch.randn(128, 50_000, generator=generator)
    log_p_TV = logits_TV.log_softmax(-1)
    assert abs(kl(log_p_TV.exp(), log_p_TV, logits_TV)) / 128 < 1e-5

    other_TV = logits_TV + 0.01 * torch.randn(logits_TV.shape, generator=generator)
    p_TV = logits_TV.double().softmax(-1)
    q_TV = other_TV.double().softmax(-1)
    expected = kl_divergence(p_TV, q_TV).sum().item()
    assert kl(log_p_TV.exp(), log_p_TV, other_TV) == pytest.approx(expected, rel=1e-3)


def test_where_some_tokens_judge_it_is_that_of_all_their_predictions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flap.data.batch.FEW", 1)
    model, statistics = calibrated("llama-gqa")
    generator = torch.Generator().manual_seed(3)
    judged_NT = torch.rand(WINDOWS.mask_NT.shape, generator=generator) < 0.3
    judged_NT[0] = False  # window 0 is held out, but plans are not measured on it
    windows = Batch(WINDOWS.tokens_NT, judged_NT)
    plans = some_plans()
    calibration = Calibration(Resident(model), WINDOWS, 4, statistics, judged_NT=judged_NT)
    measured = divergences(calibration, BiasCompensation(), plans, 1000)
    for plan, nats in zip(plans, measured, strict=True):
        pruned = tried(model, plan, BiasCompensation(), statistics)
        expected = by_hand(model, pruned, windows[::HELD_OUT])
        assert nats == pytest.approx(expected, rel=1e-3)
