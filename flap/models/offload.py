"""The weights of a layer that accelerate keeps on the host or on disk (model.placement=auto), while they are needed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers.integrations.accelerate import offload_weight


@contextmanager
def at_hand(layer: nn.Module) -> Iterator[None]:
    """Have all weights of a layer on the device that runs it; what is put in their place goes back where they were."""
    offloaded = [module for module in layer.modules() if has_offloaded_params(module)]
    with ExitStack() as stack:
        for module in offloaded:
            stack.enter_context(align_module_device(module))
        before = [dict(module.named_parameters(recurse=False)) for module in offloaded]
        yield
        for module, old in zip(offloaded, before, strict=True):
            _put_back(module, old)


def _put_back(module: nn.Module, before: dict[str, nn.Parameter]) -> None:
    """Tell accelerate's hook of each parameter that is not the one that it brought."""
    weights: Any = module._hf_hook.weights_map  # type: ignore[union-attr]
    kept, prefix = weights.dataset, weights.prefix
    on_host = all(prefix + name in kept.state_dict for name in before)
    for name, parameter in module.named_parameters(recurse=False):
        if parameter is before.get(name):
            continue
        if on_host:
            kept.state_dict[prefix + name] = parameter.detach().cpu()
        else:
            offload_weight(parameter.detach().cpu(), prefix + name, kept.save_folder, kept.index)
