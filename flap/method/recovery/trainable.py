"""Making the compressed model trainable, and an ordinary model again."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from flap.data.temporary_state import replaced
from flap.method.recovery.base import Recovery
from flap.models import adapt


@contextmanager
def trainable(recovery: Recovery, model: PreTrainedModel) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters that are trained, in float32, with all others frozen; at the end the model is as it was.

    Inside, nothing is dropped and no noise is added, as what the model learns from has none. The model gets tensors of
    its own first, because it may share those that were not pruned with the dense model.
    """
    before = _own_tensors(model, keep_bfloat16=recovery.rank is not None)
    model.requires_grad_(False)
    if recovery.gradient_checkpointing:
        model.activation_checkpointing_enable()
    decoder = adapt(model).decoder  # a vision tower is not trained
    adapted = None if recovery.rank is None else _with_adapters(decoder, recovery.rank)
    trained = (
        _all_but_ends(decoder)
        if adapted is None
        else [p for p in model.parameters() if p.requires_grad]
    )
    for parameter in trained:
        parameter.requires_grad_(True)
    with ExitStack() as changed:
        for owner, name in list(_dropouts(decoder)):
            changed.enter_context(replaced(name, 0.0, owner))
        yield trained
    if adapted is not None:
        adapted.merge_and_unload()
    if recovery.gradient_checkpointing:
        model.activation_checkpointing_disable()
    for parameter, (dtype, requires_grad) in before.items():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(requires_grad)
    model.eval()


def _dropouts(decoder: PreTrainedModel) -> Iterator[tuple[Any, str]]:
    """Yield the modules, or the config, and their attributes with the share of dropped activations, or of noise."""
    for owner in (*decoder.modules(), decoder.config):
        for name, value in vars(owner).items():
            rate = (
                "drop" in name
                or "jitter" in name
                or (isinstance(owner, nn.Dropout) and name == "p")
            )
            if rate and isinstance(value, int | float) and not isinstance(value, bool):
                yield owner, name


def _with_adapters(decoder: PreTrainedModel, rank: int) -> Any:
    """Put A and B, in float32, beside every Linear of the layers; return peft's model, which merges them."""
    from peft import (
        LoraConfig,
        get_peft_model,
    )  # here, so that other runs do not wait for its import

    options = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # peft asks for a name that transformers has replaced
        warnings.filterwarnings(
            "ignore", "fan_in_fan_out", UserWarning
        )  # it sees GPT-2's Conv1D by itself
        return get_peft_model(decoder, options)


def _all_but_ends(decoder: PreTrainedModel) -> list[nn.Parameter]:
    """Return the weights of decoder layers and norms."""
    ends = (module for module in decoder.modules() if isinstance(module, nn.Embedding))
    frozen = {id(parameter) for end in ends for parameter in end.parameters()}
    return [parameter for parameter in decoder.parameters() if id(parameter) not in frozen]


def _own_tensors(
    model: PreTrainedModel, keep_bfloat16: bool
) -> dict[nn.Parameter, tuple[torch.dtype, bool]]:
    """Replace every parameter by a copy in float32, or in bfloat16 if it has that type and keeps it; ties stay.

    Returns the type and `requires_grad` that each copy had as original.
    """
    copies: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, original in module.named_parameters(recurse=False):
            if original not in copies:
                kept = keep_bfloat16 and original.dtype == torch.bfloat16
                copied = original.detach().to(original.dtype if kept else torch.float32, copy=True)
                copies[original] = nn.Parameter(copied)
            setattr(module, name, copies[original])
    return {copied: (original.dtype, original.requires_grad) for original, copied in copies.items()}
