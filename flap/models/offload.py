"""Use and change models whose weights accelerate has offloaded (model.placement=auto)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import offload_weight

from flap.runtime.temporary_state import replaced


def running_device(model: PreTrainedModel) -> torch.device:
    """Return the device that runs a model's embeddings, even if their weights are offloaded.

    Raises:
        ValueError: the weights are on the meta device, but accelerate has not offloaded them.
    """
    device: torch.device = model.device
    if device.type != "meta":
        return device
    hook: Any = getattr(model.get_input_embeddings(), "_hf_hook", None)
    if hook is None:
        raise ValueError(
            "model: its weights are on meta; expected a model whose weights are loaded"
        )
    return torch.device(hook.execution_device)


def is_spread(model: PreTrainedModel) -> bool:
    """Return whether the weights of a model are on several devices, or some are offloaded."""
    devices = {parameter.device for parameter in model.parameters()}
    return len(devices) > 1 or torch.device("meta") in devices


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters of a model. Tied tensors are counted once."""
    return sum(parameter.numel() for parameter in distinct_parameters(model))


def distinct_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of a model. Parameters that are tied to each other are returned once.

    accelerate may have offloaded several copies of a tied parameter. Only one of these copies is
    returned.
    """
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    by_name = {tied.get(name, name): parameter for name, parameter in model.named_parameters()}
    return list(by_name.values())


@contextmanager
def onloaded(layer: nn.Module) -> Iterator[None]:
    """Keep all weights of a layer on the device that runs the layer, inside a `with` block.

    Parameters that are replaced inside the block are offloaded at its end. The layer may run inside
    the block, and the blocks of several layers may be nested.
    """
    offloaded = [module for module in layer.modules() if _is_offloaded(module)]
    with ExitStack() as stack:
        for module in offloaded:
            stack.enter_context(align_module_device(module))
            # bypass accelerate's hook, which would offload the weights after a forward pass
            stack.enter_context(replaced("forward", module._old_forward, module))
        before = [dict(module.named_parameters(recurse=False)) for module in offloaded]
        yield
        for module, old in zip(offloaded, before, strict=True):
            _offload_changes(module, old)


def _is_offloaded(module: nn.Module) -> bool:
    on_meta = any(one.device.type == "meta" for one in module.parameters(recurse=False))
    return on_meta and bool(has_offloaded_params(module))


def _offload_changes(module: nn.Module, before: dict[str, nn.Parameter]) -> None:
    """Store replaced parameters in the dict or folder from which accelerate's hook loads weights.

    before: the loaded parameters, as they were before some of them were replaced.
    """
    weights: Any = module._hf_hook.weights_map  # type: ignore[union-attr]
    store = weights.dataset
    prefix = weights.prefix
    # With accelerate's `cpu_offload`, `store` is a dict of all weights. Otherwise, its attribute
    # `state_dict` is a dict of the weights in host memory.
    in_memory = store if isinstance(store, dict) else store.state_dict
    on_host = all(prefix + name in in_memory for name in before)
    for name, parameter in module.named_parameters(recurse=False):
        # Some modules read the weights of a convolution without calling the convolution. The
        # hooks of these modules have already moved the convolution's weights back to meta, so these
        # weights are not stored.
        if parameter is before.get(name) or parameter.device.type == "meta":
            continue
        if on_host:
            in_memory[prefix + name] = parameter.detach().cpu()
        else:
            offload_weight(parameter.detach().cpu(), prefix + name, store.save_folder, store.index)
