"""Tests of the cost of one request to a model: operations, bytes of weights, memory and time."""

import time

import pytest
import torch

from flap.evaluation.request_cost import (
    generate,
    macs,
    measured_speed,
    peak_bytes,
    request_seconds,
    weight_bytes,
)
from flap.models import adapt
from tests.cases import ARCHITECTURES, VOCAB, tiny_model


@pytest.mark.parametrize("architecture", ["llama-mha", "llama-gqa", "qwen3-gqa"])
def test_macs_are_those_of_the_matrix_products(architecture: str) -> None:
    model = tiny_model(architecture)
    tokens = 24
    config = ARCHITECTURES[architecture]
    linear = adapt(model).num_parameters() - sum(
        module.bias.numel()
        for module in model.modules()
        if getattr(module, "bias", None) is not None
    )
    # The factor 2 is for the two products of attention: queries with keys, and attention weights
    # with values.
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * tokens
    expected = tokens * (linear + VOCAB * config.hidden_size + attention)
    # If the model uses a matmul for the angles of the rotary embedding (frequency · position), the
    # operations of this matmul are counted, too.
    rotary = config.head_dim // 2 * tokens
    assert macs(model, torch.ones(1, tokens, dtype=torch.long)) in (expected, expected + rotary)


def test_bytes_count_tied_weights_once_and_know_the_dtype() -> None:
    tied = tiny_model("llama-gqa")
    assert weight_bytes(tied) == 4 * sum(p.numel() for p in tied.parameters())
    assert weight_bytes(tied.bfloat16()) == 2 * sum(p.numel() for p in tied.parameters())


def test_peak_memory_grows_by_what_the_work_takes() -> None:
    model = tiny_model("llama-mha")
    size = 2**26
    idle = peak_bytes(model, lambda: None)
    busy = peak_bytes(model, lambda: torch.ones(size, dtype=torch.uint8).fill_(2))
    assert idle is not None and busy is not None
    assert 0.95 * size < busy - idle < 1.2 * size


@pytest.mark.parametrize(
    "option", [{"use_cache": False}, {"num_beams": 3}, {"stop_strings": "."}, {"max_length": 5}]
)
def test_a_request_does_not_depend_on_how_a_checkpoint_generates(option: dict[str, object]) -> None:
    model = tiny_model("llama-gqa")
    shapes = []
    model.generation_config.update(**option)
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: shapes.append(tuple(args[0].shape))
    )
    generate(model, torch.ones(2, 10, dtype=torch.long), 4)
    assert shapes == [(2, 10), (2, 1), (2, 1), (2, 1)]


def test_the_speed_of_a_model_is_measured_with_one_request() -> None:
    speed = measured_speed(tiny_model("llama-gqa"))
    # `read` and `written` are in seconds per token. A written token takes longer than a read token,
    # because each written token needs a separate forward pass, and all read tokens need only one.
    assert 0 < speed.read < speed.written < 1


def test_the_first_token_ends_the_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama-mha")
    prompt = torch.ones(1, 4, dtype=torch.long)
    seconds = 0.2
    forward = type(model).forward

    def slow_prompt(self: object, *args: object, **kwargs: object) -> object:
        is_prompt = kwargs["input_ids"].shape[1] == 4  # type: ignore[attr-defined]
        time.sleep(seconds if is_prompt else 0)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", slow_prompt)
    first, whole = request_seconds(model, prompt, 3)
    assert seconds <= first < whole
    # The model sleeps only while it reads the prompt, so writing the further tokens takes less time
    # than reading the prompt and writing the first token.
    assert whole - first < first
