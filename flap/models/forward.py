"""Run a model layer by layer: what precedes the first layer, the calls of layers, what follows.

Legend: N windows · T tokens a window · P positions of all windows · D hidden size.
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
        if device.type != "meta":  # on meta, accelerate loads the weights and moves the inputs
            hidden_NTD = hidden_NTD.to(device)
        output = layer(hidden_NTD, *self.args, **self.options)
        return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def enter(adapter: ModelAdapter, tokens_NT: Tensor) -> tuple[Tensor, list[Call]]:
    """Return the hidden states that the first layer gets for these windows, and each layer's call.

    This runs the forward pass of the model itself, so that it works for any family. The layers do
    not run and need no weights. The calls depend only on the shape of the tokens.
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
    """Return the output of the model, or of its decoder, from the output of its last layer."""

    def skip(*args: Any, **options: Any) -> Any:
        return adapter.layer_output(hidden_NTD)

    with forwards_replaced(adapter.layers, skip):
        return model(input_ids=tokens_NT, use_cache=False)


def final_states(adapter: ModelAdapter, tokens_NT: Tensor) -> Tensor:
    """Return the hidden states (P, D) after the last norm, with a graph if gradients are enabled.

    The whole model must be on one device.
    """
    output = adapter.decoder(input_ids=tokens_NT.to(adapter.model.device), use_cache=False)
    hidden_NTD: Tensor = output.last_hidden_state
    return hidden_NTD.flatten(0, 1)
