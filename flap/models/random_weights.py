"""Weights and buffers for a model that was built on the meta device, without files."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from flap.models.block import set_tensor


def fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that are in no file, such as rotary frequencies.

    transformers does the same after loading.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device=device)
    # The outer models come first, because a vision tower initialises its modules in its own way.
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    for part in parts:
        for module in part.modules():  # the decoder of Falcon-H1 fills buffers of its layers
            part._init_weights(module)


def fill_randomly(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Give modules, without their children, random weights on a device."""
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            weight = torch.empty_like(parameter, device=device).uniform_(-0.02, 0.02)
            set_tensor(module, name, weight)
