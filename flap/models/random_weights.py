"""Give a model on the meta device random weights, and compute its buffers."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from flap.models.block import set_tensor


def fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that are not stored in files, such as rotary frequencies.

    transformers does the same after loading a model.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device=device)
    # `modules` yields outer models before inner models. So the whole model first computes the
    # buffers of a vision tower, and then the tower replaces these values with its own values.
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    for part in parts:
        # include all modules of a part, because Falcon-H1's decoder computes the buffers of its
        # layers
        for module in part.modules():
            part._init_weights(module)


def fill_randomly(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Give modules random weights on a device. The weights of child modules are not changed."""
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            weight = torch.empty_like(parameter, device=device).uniform_(-0.02, 0.02)
            set_tensor(module, name, weight)
