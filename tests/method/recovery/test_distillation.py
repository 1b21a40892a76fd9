"""Training lowers the divergence KL(dense ‖ pruned) of the predictions.

The trained model can be saved and reloaded.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    FalconConfig,
    GPT2Config,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from flap.checkpoint.save import make_label, save_checkpoint
from flap.method.recovery import Recovery
from flap.method.recovery.base import HELD_OUT_WINDOWS
from flap.method.recovery.distillation import distil
from flap.method.recovery.student import mean_divergence
from flap.method.recovery.trainable import trainable
from flap.models import Resident
from tests.cases import random_model, tiny_model, tokens
from tests.helpers.marks import quick
from tests.helpers.pruned import logits, prune
from tests.method.recovery.small import (
    FULL,
    LORA,
    compressed,
    dense,
    equal,
    in_type,
    recovered,
    state,
    windows,
)

# Options for tests in which the number of training steps does not matter. With these options,
# training has 17 steps, whereas it has 40 steps with FULL and LORA. The model is evaluated after
# every 16 steps and at the end.
SHORT = replace(FULL, tokens=17 * FULL.tokens_a_step)
SHORT_LORA = replace(LORA, tokens=17 * LORA.tokens_a_step)
CASES = {
    "full": (FULL, "llama-gqa", torch.float32),
    "full, biases": (FULL, "llama-gqa-biases", torch.float32),
    "full, bfloat16": (FULL, "qwen3-gqa", torch.bfloat16),
    "full, experts": (FULL, "qwen3_moe", torch.float32),
    "lora": (LORA, "llama-gqa-biases", torch.float32),
    "lora, bfloat16": (replace(LORA, gradient_checkpointing=True), "llama-mha", torch.bfloat16),
    "lora, float16": (LORA, "llama-gqa", torch.float16),
}
QUICK = ("full, biases",)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in QUICK else pytest.mark.long) for case in CASES],
)
def test_the_divergence_falls_and_the_model_reloads(
    case: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    recovery, architecture, dtype = CASES[case]
    model = tiny_model(architecture)
    plan = prune(model, 0.3)
    before = state(in_type(model, dtype))
    class_before = type(model)
    summary = recovered(model, recovery, tmp_path / "work", architecture)
    assert summary["tokens"] == recovery.tokens
    assert not summary["stopped_early"]

    # The divergence on held-out windows falls.
    assert summary["nats_after"] < 0.9 * summary["nats_before"]
    held_out = windows(recovery)[:HELD_OUT_WINDOWS]
    measured = mean_divergence(Resident(model), dense(architecture, dtype), held_out, 8)
    assert measured == summary["nats_after"]
    _, nats_in_autocast = summary["nats_by_tokens"][0]
    assert nats_in_autocast == pytest.approx(summary["nats_before"], rel=0.03)

    # The model's parameters keep their names, shapes and dtypes.
    after = state(model)
    assert after.keys() == before.keys()
    for name, parameter in after.items():
        assert parameter.shape == before[name].shape
        assert parameter.dtype == before[name].dtype
    assert type(model) is class_before
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    # Saving verifies that the reloaded checkpoint gives the same logits as this model.
    save_checkpoint(Resident(model), tokenizer, tmp_path / "saved", make_label(plan.to_dict(), {}))


@pytest.mark.parametrize(
    ("recovery", "trained"), [(SHORT, ("layers", "norm")), (SHORT_LORA, ("proj.weight",))]
)
def test_embeddings_and_head_stay(
    recovery: Recovery, trained: tuple[str, ...], tmp_path: Path
) -> None:
    model = compressed("qwen3-gqa")
    before = state(model)
    recovered(model, recovery, tmp_path, "qwen3-gqa")
    after = state(model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if any(part in name for part in trained)}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= before.keys() - changed


@pytest.mark.parametrize("recovery", [SHORT, SHORT_LORA])
@pytest.mark.parametrize("dtype", quick(1, [torch.float32, torch.bfloat16]))
def test_a_dense_model_that_shares_tensors_stays(
    recovery: Recovery, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = compressed("llama-gqa", dtype)
    teacher = dense("llama-gqa", dtype)
    model.model.embed_tokens.weight = model.lm_head.weight = (
        teacher.model.model.model.embed_tokens.weight
    )
    others = teacher.model.model.model.layers
    for layer, dense_layer in zip(model.model.layers, others, strict=True):
        layer.input_layernorm.weight = dense_layer.input_layernorm.weight
    before = state(teacher.model.model)
    distil(recovery, Resident(model), teacher, windows(recovery), tmp_path, seed=0)
    assert equal(state(teacher.model.model), before)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.long
@pytest.mark.parametrize("recovery", quick(1, [SHORT, SHORT_LORA]))
def test_it_is_deterministic_and_leaves_random_states(recovery: Recovery, tmp_path: Path) -> None:
    teacher = dense()
    batch = windows(recovery)
    states = []
    for number in range(2):
        model = compressed()
        torch.manual_seed(number)
        before = torch.random.get_rng_state()
        distil(recovery, Resident(model), teacher, batch, tmp_path / str(number), seed=5)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(state(model))
    assert equal(*states)


def test_the_merged_model_computes_what_the_adapters_did() -> None:
    model = compressed("llama-gqa-biases")
    before = logits(model.eval())
    with trainable(LORA, model) as trained:
        # Before training, LoRA does not change the logits, because its matrix B is zero.
        assert torch.equal(logits(model.eval()), before)
        with torch.no_grad():
            for parameter in trained:
                parameter.normal_(std=0.1)
        adapted = logits(model)
    assert (adapted - before).abs().max() > 0.1
    torch.testing.assert_close(logits(model), adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.long
def test_gradient_checkpointing_computes_layers_twice_and_trains_the_same(tmp_path: Path) -> None:
    def trained(checkpointing: bool) -> tuple[PreTrainedModel, int]:
        """Return the trained model, and how often its first layer ran with gradients enabled."""
        model = compressed()
        with_gradients: list[bool] = []
        model.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_: with_gradients.append(torch.is_grad_enabled())
        )
        recovery = replace(SHORT, gradient_checkpointing=checkpointing)
        recovered(model, recovery, tmp_path / str(checkpointing))
        assert not model.is_activation_checkpointing
        return model, sum(with_gradients)

    plain, calls = trained(checkpointing=False)
    assert calls == SHORT.steps
    checkpointed, calls = trained(checkpointing=True)
    assert calls == 2 * SHORT.steps
    assert equal(state(plain), state(checkpointed))


@pytest.mark.parametrize(("learning_rate", "better"), quick(1, [(0.015, True), (1e-6, False)]))
def test_what_rounding_takes_back_is_not_reported(
    learning_rate: float, better: bool, tmp_path: Path
) -> None:
    """The summary contains the divergence of the trained weights after rounding to bfloat16.

    If the rounded weights are worse than the weights before the training, the model keeps the
    weights from before the training.
    """
    recovery = replace(FULL, learning_rate=learning_rate)
    model = compressed().bfloat16()
    teacher = dense()
    batch = windows(FULL)
    before = state(model)
    summary = distil(recovery, Resident(model), teacher, batch, tmp_path, 0)
    held_out = batch[:HELD_OUT_WINDOWS]
    after = mean_divergence(Resident(model), teacher, held_out, FULL.batch_size)
    assert summary["nats_after"] == after
    assert (after < summary["nats_before"]) == better
    assert (summary["best_after_tokens"] > 0) == better
    assert equal(state(model), before) == (not better)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("learning_rate", [15.0, 1e30])
def test_diverged_training_keeps_the_best(
    learning_rate: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = compressed()
    before = state(model)
    summary = recovered(model, replace(FULL, learning_rate=learning_rate, patience=1), tmp_path)
    assert summary["stopped_early"]
    assert summary["best_after_tokens"] == 0
    assert summary["tokens"] < FULL.tokens
    assert summary["nats_after"] == summary["nats_before"]
    assert equal(state(model), before)
    _, last_nats = summary["nats_by_tokens"][-1]
    assert (last_nats is None) == (learning_rate == 1e30)
    assert "training did not improve the compressed model" in caplog.text
    assert f"ended after {summary['tokens']} of {FULL.tokens} tokens" in caplog.text
    json.dumps(summary, allow_nan=False)


def test_a_model_without_finite_predictions_is_refused(tmp_path: Path) -> None:
    model = compressed()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    refusal = "recover=full: the predictions of the compressed model are not finite"
    with pytest.raises(ValueError, match=refusal):
        recovered(model, FULL, tmp_path)


@pytest.mark.parametrize("recovery", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("config", [GPT2Config, OPTConfig, FalconConfig])
def test_nothing_is_dropped_in_training(config: type[PreTrainedConfig], recovery: Recovery) -> None:
    """Dropout is off while a model is trained, although the model is in training mode."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "ffn_dim": 64,
    }
    drops = {"layerdrop": 0.5, "attention_dropout": 0.5, "attn_pdrop": 0.5, "hidden_dropout": 0.5}
    others = {"word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = random_model(config(**sizes, **drops, **others))

    def drops_something() -> bool:
        model.train()
        first = model(input_ids=tokens() % 64).logits
        return not torch.equal(model(input_ids=tokens() % 64).logits, first)

    assert drops_something()
    with trainable(recovery, model):
        assert not drops_something()
    assert drops_something()
