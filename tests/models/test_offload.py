"""Weights that accelerate holds back from the device: at hand inside the block, and the new ones afterwards."""

import pytest
import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from accelerate.utils import OffloadedWeightsLoader
from torch import nn
from transformers import PreTrainedModel

from flap.models import adapt, at_hand
from tests.cases import tiny_model
from tests.checkpoint.pruned import logits, prune


@pytest.fixture
def held_back() -> PreTrainedModel:
    """Layers 1 and 2 wait on the host, as beside a GPU; here the device that runs them is the CPU, too."""
    model = tiny_model("llama-gqa-biases")
    names = [name for name, _ in model.named_children() if name != "model"]
    names += [f"model.{name}" for name, _ in model.model.named_children() if name != "layers"]
    names += [f"model.layers.{i}" for i in range(4)]
    waiting = {name: name.endswith(("layers.1", "layers.2")) for name in names}
    weights = OffloadedWeightsLoader(state_dict=dict(model.state_dict()))
    attach_align_device_hook_on_blocks(model, dict.fromkeys(["", *names], "cpu"), waiting, weights_map=weights)
    return model


def devices(layer: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in layer.parameters()}


def test_weights_are_at_hand_for_as_long_as_the_block_lasts(held_back: PreTrainedModel) -> None:
    expected = tiny_model("llama-gqa-biases").model.layers
    for i, layer in enumerate(held_back.model.layers):
        before = devices(layer)
        assert before == {"meta" if i in (1, 2) else "cpu"}
        with at_hand(layer):
            assert torch.equal(layer.mlp.up_proj.weight, expected[i].mlp.up_proj.weight)
        assert devices(layer) == before


def test_new_weights_take_the_place_of_the_old_ones(held_back: PreTrainedModel) -> None:
    linear = held_back.model.layers[1].mlp.down_proj
    with at_hand(held_back.model.layers[1]):
        linear.weight = nn.Parameter(linear.weight[:, :5].contiguous())
        del linear.bias
        linear.register_parameter("bias", None)
    with at_hand(held_back.model.layers[1]):
        assert linear.weight.shape == (32, 5) and linear.bias is None
    assert linear.weight.device.type == "meta"


def test_a_model_that_waits_on_the_host_is_pruned_like_any_other(held_back: PreTrainedModel) -> None:
    expected = tiny_model("llama-gqa-biases")
    assert torch.equal(logits(held_back), logits(expected))
    assert prune(held_back, 0.4) == prune(expected, 0.4)
    assert torch.equal(logits(held_back), logits(expected))
    assert adapt(held_back).num_parameters() == adapt(expected).num_parameters()
    assert devices(held_back.model.layers[2]) == {"meta"}
