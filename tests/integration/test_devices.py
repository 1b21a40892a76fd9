"""A model on any device, or spread over a device and the CPU, is pruned like a model on the CPU.

test_same_result.py compares complete runs on several devices. tests/models/families tests models of
every family on several devices.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import flap
from flap.checkpoint.save import make_label, save_checkpoint
from flap.config import ModelConfig
from flap.models import PLACEMENTS, Spread, find_model
from tests.cases import tiny_model, tokens
from tests.helpers.pruned import prune
from tests.models.families.contract import logits_on as logits

# The largest difference between two tensors that counts as rounding, relative to the largest
# absolute value of the expected tensor. test_same_result.py gives the reason for this value.
ROUNDING = 1e-4
CPU = torch.device("cpu")


def model_on(device: torch.device) -> PreTrainedModel:
    return tiny_model("llama-gqa-biases").to(device)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    largest = max(expected.abs().max().item(), 1e-6)
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=ROUNDING * largest)


def assert_same_tensors(
    found: PreTrainedModel, expected: PreTrainedModel, device: torch.device
) -> None:
    """Check that both models have tensors of the same names and shapes, with close values."""
    tensors = dict(found.named_parameters())
    wanted = dict(expected.named_parameters())
    assert tensors.keys() == wanted.keys()
    assert {tensor.device.type for tensor in tensors.values()} == {device.type}
    for name, tensor in tensors.items():
        assert_close(tensor.detach(), wanted[name].detach())


def test_a_model_in_memory_is_pruned_and_its_files_are_read(
    device: torch.device, tokenizer: PreTrainedTokenizerFast, text_file: Path, tmp_path: Path
) -> None:
    models = [model_on(place) for place in (device, CPU)]
    data = {"dataset": str(text_file), "num_samples": 8, "seq_len": 16}
    reports = [flap.prune(model, tokenizer, ratio=0.4, **data) for model in models]
    assert reports[0].layers == reports[1].layers
    assert_same_tensors(models[0], models[1], device)
    models[0].save_pretrained(tmp_path)
    assert_close(logits(flap.load(tmp_path)), logits(models[1]))
    assert torch.equal(
        logits(flap.load(tmp_path, device_map={"": device})).cpu(), logits(models[0]).cpu()
    )


@pytest.mark.parametrize("embeddings", ["on it", "on the host"])
def test_spread_over_it_and_the_host(
    device: torch.device, embeddings: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A model spread over the device and the CPU gives the same results as a model on the CPU.

    The test sets the device map itself, because accelerate cannot compute a device map for the
    simulated device of tests/helpers/second_device.py.
    """
    expected = model_on(CPU)
    directory = tmp_path / "dense"
    for part in (expected, tokenizer):
        part.save_pretrained(directory)
    source = find_model(
        ModelConfig("tiny", str(directory), device="cpu"), tmp_path / "cache", False
    )
    places = dict.fromkeys(
        ("model.norm", "model.rotary_emb", "lm_head", "model.layers.0", "model.layers.2"), device
    )
    places |= dict.fromkeys(("model.layers.1", "model.layers.3"), "cpu")
    places["model.embed_tokens"] = device if embeddings == "on it" else "cpu"
    placed = Spread(
        replace(source, device=device, placed=PLACEMENTS["auto"]).read(device_map=places)
    )
    assert placed.device.type == device.type
    # The device map places layer 1 on the CPU. accelerate copies the weights of such a layer to the
    # device while the layer runs. At all other times, the layer's parameters are on the meta
    # device.
    assert {parameter.device.type for parameter in placed.layers[1].parameters()} == {"meta"}
    plan = prune(expected, 0.4)
    assert prune(placed, 0.4) == plan
    after = save_checkpoint(placed, tokenizer, tmp_path / "pruned", make_label(plan.to_dict(), {}))
    assert after.device == placed.device
    assert_close(after.logits(tokens(seed=7)), logits(expected))
    assert_same_tensors(flap.load(tmp_path / "pruned"), expected, CPU)


def test_the_second_device_refuses_what_a_gpu_refuses(device: torch.device) -> None:
    there = torch.ones(4, 4).to(device)
    here = torch.ones(4, 4)
    index = torch.tensor([0, 2])
    for mixed in (
        lambda: there + here,
        lambda: here @ there,
        lambda: torch.cat([there, here]),
        lambda: here[index.to(device)],
        lambda: there.index_select(0, index),
        lambda: there.clone().index_put_((index,), here[0]),
        lambda: torch.where(there > 0, there, here),
    ):
        with pytest.raises(RuntimeError):
            mixed()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    # As on a GPU, tensors without dimensions, and index tensors, may be on the CPU.
    assert torch.equal((there * torch.tensor(2.0))[index].cpu(), 2 * here[index])
