"""Models that accelerate has offloaded (model.placement=auto): device, parameters, and onloading a layer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import offload_weight


def running_device(model: PreTrainedModel) -> torch.device:
    """Return the device that runs the embeddings of a model, also where their weights wait on the host or on disk."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    hook: Any = model.get_input_embeddings()._hf_hook
    return torch.device(hook.execution_device)


def distinct_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of a model. Tied ones come once, also where accelerate has each on disk."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    return list({tied.get(name, name): parameter for name, parameter in model.named_parameters()}.values())


@contextmanager
def onloaded(layer: nn.Module) -> Iterator[None]:
    """Onload a layer: inside the block all its weights are on the device that runs it.

    Parameters that are replaced inside the block are offloaded again, to the place of the old ones. The layer may run
    inside the block, and the blocks may be nested.
    """
    offloaded = [module for module in layer.modules() if _is_offloaded(module)]
    with ExitStack() as stack:
        for module in offloaded:
            stack.enter_context(align_module_device(module))
            stack.enter_context(_without_hook(module))
        before = [dict(module.named_parameters(recurse=False)) for module in offloaded]
        yield
        for module, old in zip(offloaded, before, strict=True):
            _offload_changes(module, old)


def _is_offloaded(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return bool(has_offloaded_params(module)) and any(parameter.device.type == "meta" for parameter in parameters)


@contextmanager
def _without_hook(module: Any) -> Iterator[None]:
    """Run the module without accelerate's hook, which would offload the weights again after the forward pass."""
    hooked = module.forward
    module.forward = module._old_forward
    try:
        yield
    finally:
        module.forward = hooked


def _offload_changes(module: nn.Module, before: dict[str, nn.Parameter]) -> None:
    """Give accelerate's hook the parameters that were replaced. before: the parameters that it had onloaded."""
    weights: Any = module._hf_hook.weights_map  # type: ignore[union-attr]
    store, prefix = weights.dataset, weights.prefix
    on_host = all(prefix + name in store.state_dict for name in before)
    for name, parameter in module.named_parameters(recurse=False):
        # on meta it was offloaded again by the hook of the parent, which reads the weights of a convolution itself
        if parameter is before.get(name) or parameter.device.type == "meta":
            continue
        if on_host:
            store.state_dict[prefix + name] = parameter.detach().cpu()
        else:
            offload_weight(parameter.detach().cpu(), prefix + name, store.save_folder, store.index)
