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
from transformers import PreTrainedConfig

from flap.models import adapt
from flap.models.source import skeleton

log = logging.getLogger(__name__)

# The lengths of the windows that are counted: whole chunks of all layers of linear attention.
LENGTHS = (256, 512)
_counted: dict[str, "Forward"] = {}


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


def forward_operations(config: PreTrainedConfig, trust_remote_code: bool) -> Forward:
    """Return the operations of the model of a config.

    Where its code looks at values, which are not there, they are two for each parameter.
    """
    key = config.to_json_string()
    if key not in _counted:
        model = skeleton(copy.deepcopy(config), trust_remote_code)
        adapter = adapt(model)
        try:
            model.set_experts_implementation("batched_mm")  # which does not ask how many tokens an expert has
            short, long = (_count(model, adapter.layers, length) for length in LENGTHS)
            lines = [_line(a, b) for a, b in zip(short, long, strict=True)]
        except RuntimeError as error:
            log.debug("operations are estimated from parameters: %s", error)
            parts = *adapter.layers, model.get_output_embeddings()
            lines = [(2.0 * sum(parameter.numel() for parameter in part.parameters()), 0.0) for part in parts]
        _counted[key] = Forward(tuple(lines[:-1]), lines[-1])
    return _counted[key]


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
        for layer in layers:  # of a skeleton that nobody else uses
            layer.register_forward_pre_hook(lambda *_: found.append(counter.get_total_flops()))
            layer.register_forward_hook(lambda *_: found.append(counter.get_total_flops() - found.pop()))
        tokens_NT = torch.zeros(1, length, dtype=torch.long)
        torch.func.functional_call(model, tensors, kwargs={"input_ids": tokens_NT, "use_cache": False})
    return [*found, counter.get_total_flops() - sum(found)]
