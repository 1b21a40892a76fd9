"""The measured divergence is that of the whole pruned model, and the model stays as it was."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.allocation import LayerPlan, PruningPlan, Trial
from flap.compression import Divergence, LinearCompensation
from flap.models import adapt
from flap.pipeline import run
from tests.cases import ARCHITECTURES, tiny_model, tokens
from tests.compression.oracle import COMPENSATIONS, calibrated, changed, plan_for
from tests.runs import composed, tiny


@torch.no_grad()
def by_hand(dense: PreTrainedModel, pruned: PreTrainedModel, windows: Tensor) -> float:
    dense_NTV, pruned_NTV = (one(input_ids=windows).logits.double().softmax(-1) for one in (dense, pruned))
    return (dense_NTV * (dense_NTV / pruned_NTV).log()).sum(-1).mean().item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_divergence_of_the_whole_model(architecture: str) -> None:
    model, known = calibrated(architecture)
    groups, windows = ARCHITECTURES[architecture].num_key_value_heads, tokens(3)
    everything = LayerPlan(tuple(range(groups)), tuple(range(56)))
    less = LayerPlan(everything.kv_heads, tuple(range(20)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured = Divergence(adapt(model), windows).of(1, Trial("mlp", 36, less), LinearCompensation(), known[1])
    pruned = changed(model, PruningPlan((everything, less, everything, everything)), LinearCompensation(), known)
    expected = by_hand(model, pruned, windows)
    assert expected > 1e-3
    assert measured == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_around_a_plan_all_layers_are_pruned(architecture: str, compensation: str) -> None:
    model, known = calibrated(architecture)
    plan, fit, windows = plan_for(architecture), COMPENSATIONS[compensation], tokens(3)
    divergence = Divergence(adapt(model), windows)
    stack = divergence.stack(plan, fit, known)
    assert stack.nats == pytest.approx(by_hand(model, changed(model, plan, fit, known), windows), rel=1e-3)
    less = LayerPlan(plan.layers[2].kv_heads, plan.layers[2].neurons[1:])
    moved = PruningPlan((*plan.layers[:2], less, plan.layers[3]))
    measured = divergence.of(2, Trial("mlp", 56 - len(less.neurons), less), fit, known[2], stack)
    assert measured == pytest.approx(by_hand(model, changed(model, moved, fit, known), windows), rel=1e-3)
    assert divergence.of(2, Trial("mlp", 0, plan.layers[2]), fit, known[2], stack) == stack.nats


def test_a_layer_that_loses_nothing_does_not_diverge() -> None:
    model, known = calibrated("llama-gqa")
    whole = LayerPlan(tuple(range(4)), tuple(range(56)))
    assert Divergence(adapt(model), tokens(3)).of(2, Trial("mlp", 0, whole), LinearCompensation(), known[2]) < 1e-6


def test_predictions_that_are_not_finite_name_the_layer() -> None:
    model = tiny_model("llama-gqa")
    _, known = calibrated("llama-gqa")
    divergence = Divergence(adapt(model), tokens(3))
    model.model.layers[1].mlp.up_proj.weight.data[:] = float("inf")
    less = LayerPlan(tuple(range(4)), tuple(range(20)))
    with pytest.raises(ValueError, match="without 36 units of layer 1 mlp are not finite"):
        divergence.of(1, Trial("mlp", 36, less), LinearCompensation(), known[1])


def test_what_was_measured_serves_other_ratios(tmp_path, model_dir, text_file, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    counted = []
    measure = Divergence.of
    monkeypatch.setattr(Divergence, "of", lambda *args: counted.append(args) or measure(*args))
    plans = []
    for ratio in (0.2, 0.2, 0.5):
        config = composed(
            *tiny(model_dir, text_file), "method=flap_plus", "structure.rounds=0", "calibration.num_samples=8",
            f"ratio={ratio}", f"cache_dir={tmp_path / 'cache'}", "checkpoint.save=false",
        )  # fmt: skip
        run(config, tmp_path / str(len(plans)))
        plans.append((tmp_path / str(len(plans)) / "plan.json").read_text())
    assert len(counted) == 4 * (3 + 4)  # layers, of each: 1, 2, 3 of 4 KV heads and four levels of neurons
    assert plans[0] == plans[1] != plans[2]
