"""A model with layers of equal width becomes a stock checkpoint, or flap says why it cannot.

transformers loads a stock checkpoint with one of its own classes, without code of flap.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from flap.checkpoint.convert import become_checkpointable
from flap.checkpoint.load import load
from flap.method.allocation import ULMM, ULUM
from flap.method.compression import NoCompensation, mask_layer
from flap.modeling.modeling_flap import FlapLlamaForCausalLM
from flap.models import Resident
from tests.cases import tiny_model
from tests.helpers.pruned import logits, prune, save_pruned

UNIFORM = {"structure": ULUM()}
PLAIN = {"compensation": NoCompensation()}
REASONS = [
    ("llama-gqa", 0.4, {}, "layers differ in width"),
    ("llama-gqa", 0.4, {"structure": ULMM(remove_heads=6)}, "layers differ in width"),
    (
        "llama-mha",
        0.4,
        UNIFORM,
        r"The hidden size \(32\) is not a multiple of the number of attention heads \(5\)",
    ),
    (
        "mistral-gqa",
        0.4,
        UNIFORM,
        r"mistral has no tensor model\.layers\.0\.self_attn\.o_proj\.bias of shape \[32\]",
    ),
    (
        "qwen3-gqa",
        0.4,
        UNIFORM,
        r"qwen3 has no tensor model\.layers\.0\.mlp\.down_proj\.bias of shape \[32\]",
    ),
]


def biases(model: PreTrainedModel) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.endswith("bias")}


@pytest.mark.parametrize(("architecture", "ratio", "options", "reason"), REASONS)
def test_what_the_base_cannot_hold_says_why(
    architecture: str, ratio: float, options: dict, reason: str
) -> None:
    model = tiny_model(architecture)
    prune(model, ratio, **options)
    loads_with = become_checkpointable(Resident(model))
    assert type(model).__name__.startswith("Flap")
    added = biases(model) - biases(tiny_model(architecture))
    # Bias compensation adds biases only to output projections. All other Linear modules must stay
    # without biases: flap must not even add biases that are zero.
    assert all(name.endswith(("o_proj.bias", "down_proj.bias")) for name in added)
    assert re.fullmatch(rf"flap, or trust_remote_code=True \({reason}\)", loads_with)


@pytest.mark.parametrize(("remove_heads", "flags"), [(0, (False, True)), (16, (True, True))])
def test_no_more_biases_than_it_takes(
    remove_heads: int, flags: tuple[bool, bool], tmp_path: Path
) -> None:
    model = tiny_model("llama-gqa")
    prune(model, 0.4, structure=ULMM(remove_heads=remove_heads))
    assert (model.config.attention_bias, model.config.mlp_bias) == flags
    layer = model.model.layers[1]
    assert layer.mlp.down_proj.bias.any() and not layer.mlp.up_proj.bias.any()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["head_dim"]) == (8 - remove_heads // 4, 8)
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(logits(reloaded), logits(model))


def test_pruned_again_it_becomes_what_it_can_be(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model("llama-mha")
    steps = [
        # Not stock: 5 heads remain, and the hidden size, 32, is not a multiple of 5.
        (0.4, UNIFORM, FlapLlamaForCausalLM),
        # Stock: 4 heads remain, and 32 is a multiple of 4.
        (0.2, {"structure": ULMM(remove_heads=4)}, LlamaForCausalLM),
        (0.3, {}, FlapLlamaForCausalLM),
    ]
    for i, (ratio, options, expected) in enumerate(steps):
        plan = prune(model, ratio, **options)
        reloaded = load(save_pruned(model, tokenizer, tmp_path / str(i), plan).directory)
        assert type(model) is type(reloaded) is expected
        assert torch.equal(logits(reloaded), logits(model))
        model = reloaded


def test_a_masked_model_has_its_dense_widths() -> None:
    model = tiny_model("llama-gqa")
    prune(model, 0.4, mask_layer)
    assert type(model) is LlamaForCausalLM
    assert model.config.attention_bias and model.config.mlp_bias
    assert (model.config.num_attention_heads, model.config.intermediate_size) == (8, 56)
