"""Few tokens, singular covariances, channels that are constant or always zero: whatever reads covariances stays finite.

Whole runs on a tiny model; what each part does with such moments by itself is in the tests
of its folder.
"""

import math

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap import prune
from tests.cases import tiny_model, tokens

CHOICES = {
    "linear, ridge 0": ("compensation=linear", "compensation.ridge=0"),
    "OBS": ("metric=OBS",),
    "flap_plus": ("metric=OBS", "structure=search", "compensation=linear"),
}


def degenerate(case: str) -> PreTrainedModel:
    """Every other unit, or every unit, is `case` in all layers; "few tokens" is a model like any other."""
    model = tiny_model("llama-gqa")
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if case == "twins":
            mlp.gate_proj.weight.data[1::2] = mlp.gate_proj.weight.data[::2]
            mlp.up_proj.weight.data[1::2] = mlp.up_proj.weight.data[::2]
            attention.v_proj.weight.data[8:16] = attention.v_proj.weight.data[:8]
        if case == "zero":
            mlp.up_proj.weight.data[::2] = 0
            attention.v_proj.weight.data[:16] = 0
        if case == "constant":  # the values are a bias alone, whatever the token
            attention.v_proj.weight.data[:16] = 0
            attention.v_proj.bias = torch.nn.Parameter(torch.ones(32))
        if case == "all zero":
            mlp.up_proj.weight.data[:] = 0
            attention.v_proj.weight.data[:] = 0
    return model


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("case", ["few tokens", "twins", "zero", "constant", "all zero"])
def test_met_and_finite(case: str, choice: str, tokenizer: PreTrainedTokenizerFast, text_file: str) -> None:
    model = degenerate(case)
    windows = {"num_samples": 2, "seq_len": 4} if case == "few tokens" else {"num_samples": 8, "seq_len": 16}
    report = prune(
        model, tokenizer, ratio=0.4, overrides=CHOICES[choice], dataset=str(text_file), batch_size=3, **windows
    )
    assert report.ratio["realised_decoder"] == pytest.approx(0.4, abs=0.04)
    assert all(layer["neurons"] and layer["kv_heads"] for layer in report.layers)
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=tokens()).logits).all()
    for one in report.repairs.values():
        assert math.isfinite(one["held_out_error"])
        assert one["held_out_error"] <= one["held_out_error_of_bias"]
