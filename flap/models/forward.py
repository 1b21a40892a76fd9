"""Run a model in steps: up to the first decoder layer, each single layer, and after the last layer.

Legend: N: windows (token sequences) · T: tokens per window · P: positions of all windows · D:
hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flap.models.adapter import ModelAdapter
from flap.runtime.temporary_state import forwards_replaced


@dataclass(frozen=True)
class Call:
    """The arguments of a layer besides the hidden states, such as masks and rotary angles."""

    args: tuple[Any, ...]
    options: dict[str, Any]

    @torch.no_grad()
    def __call__(self, layer: nn.Module, hidden_NTD: Tensor) -> Tensor:
        device = next(layer.parameters()).device
        # Move the inputs to the device of the layer. If the weights are on meta, accelerate's hooks
        # load the weights, and then move the inputs to the device of the loaded weights.
        if device.type != "meta":
            hidden_NTD = hidden_NTD.to(device)
        output = layer(hidden_NTD, *self.args, **self.options)
        return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def enter(adapter: ModelAdapter, tokens_NT: Tensor) -> tuple[Tensor, list[Call]]:
    """Return the hidden states before the first layer, and all other arguments of each layer.

    The hidden states and the arguments are recorded in a forward pass of the decoder, so this works
    for every family of models. The layers do not run in this pass, and need no weights. The other
    arguments depend only on the shape of tokens_NT, unless `ModelAdapter.reads_tokens` is true.
    """
    hidden: list[Tensor] = []
    calls: list[Call] = []

    def record(index: int, hidden_NTD: Tensor, *args: Any, **options: Any) -> Any:
        hidden.append(hidden_NTD)
        calls.append(Call(args, options))
        return adapter.layer_output(hidden_NTD)

    with forwards_replaced(adapter.layers, record):
        adapter.decoder(input_ids=tokens_NT, use_cache=False)
    return hidden[0], calls


@torch.no_grad()
def output_after_layers(
    adapter: ModelAdapter, model: PreTrainedModel, tokens_NT: Tensor, hidden_NTD: Tensor
) -> Any:
    """Return the output of a model for a given output of its last layer.

    model: the whole model, or its decoder.
    """

    def skip(*args: Any, **options: Any) -> Any:
        return adapter.layer_output(hidden_NTD)

    with forwards_replaced(adapter.layers, skip):
        return model(input_ids=tokens_NT, use_cache=False)


def final_states(adapter: ModelAdapter, tokens_NT: Tensor) -> Tensor:
    """Return the hidden states (P, D) after the decoder's final norm.

    If grad mode is on, gradients can be computed through these states. The whole model must be on
    one device.
    """
    output = adapter.decoder(input_ids=tokens_NT.to(adapter.model.device), use_cache=False)
    hidden_NTD: Tensor = output.last_hidden_state
    return hidden_NTD.flatten(0, 1)
