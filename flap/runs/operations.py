"""The operations of a model's forward pass, as torch counts them on tensors that have no data."""

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flap.models import ModelAdapter, adapt

log = logging.getLogger(__name__)

# The lengths of the windows that are counted: whole chunks of all layers of linear attention.
LENGTHS = (256, 512)
COUNTS: dict[str, "Forward"] = {}  # by the config of the model


@dataclass(frozen=True)
class Forward:
    """The operations of a forward pass for each token of a window of T tokens: fixed + growth · T."""

    layers: tuple[tuple[float, float], ...]  # fixed and growth of each decoder layer
    ends: tuple[float, float]  # of the head, and what else is not in a layer

    def layer(self, index: int, length: int) -> float:
        """Return the operations of a layer for a token of a window of `length` tokens."""
        fixed, growth = self.layers[index]
        return fixed + growth * length

    def all_layers(self, length: int) -> float:
        """Return the operations of all layers for a token of a window of `length` tokens."""
        return sum(self.layer(i, length) for i in range(len(self.layers)))

    def head(self, length: int) -> float:
        """Return the operations outside the layers for a token of a window of `length` tokens."""
        fixed, growth = self.ends
        return fixed + growth * length


def counted(adapter: ModelAdapter) -> Forward:
    """Return the operations of a model on the meta device; `from_parameters`, where its code needs values."""
    key = adapter.model.config.to_json_string()
    if key not in COUNTS:
        try:
            model = copy.deepcopy(adapter.model)
            model.set_experts_implementation("batched_mm")  # which does not ask how many tokens an expert has
            short, long = (_count(model, adapt(model).layers, length) for length in LENGTHS)
            *lines, ends = (_line(a, b) for a, b in zip(short, long, strict=True))
            COUNTS[key] = Forward(tuple(lines), ends)
        except Exception as error:  # any: a model's own code raises what it likes
            log.debug("operations are estimated from parameters: %s", error)
            COUNTS[key] = from_parameters(adapter)
    return COUNTS[key]


def from_parameters(adapter: ModelAdapter) -> Forward:
    """Return two operations for each parameter of the layers and the head."""
    parts = *adapter.layers, adapter.model.get_output_embeddings()
    *lines, ends = ((2.0 * sum(parameter.numel() for parameter in part.parameters()), 0.0) for part in parts)
    return Forward(tuple(lines), ends)


def _line(short: int, long: int) -> tuple[float, float]:
    """Return fixed and growth of the operations of a token, from those of two windows."""
    (few, many), (a, b) = LENGTHS, (short / LENGTHS[0], long / LENGTHS[1])
    growth = max(0.0, (b - a) / (many - few))
    return a - growth * few, growth


@torch.no_grad()
def _count(model: Any, layers: nn.ModuleList, length: int) -> list[int]:
    """Return the operations of each layer, and last of all else, for one window."""
    found: list[int] = []
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        for layer in layers:  # of a copy that nobody else uses
            layer.register_forward_pre_hook(lambda *_: found.append(counter.get_total_flops()))
            layer.register_forward_hook(lambda *_: found.append(counter.get_total_flops() - found.pop()))
        tokens_NT = torch.zeros(1, length, dtype=torch.long)
        torch.func.functional_call(model, tensors, kwargs={"input_ids": tokens_NT, "use_cache": False})
    return [*found, counter.get_total_flops() - sum(found)]
