"""Make the compressed model trainable, and turn it back into an ordinary model after training.

The compressed model learns the predictions of the dense model, which is the model before
compression.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from flap.method.recovery.base import Recovery
from flap.models import adapt
from flap.runtime.temporary_state import replaced


@contextmanager
def trainable(recovery: Recovery, model: PreTrainedModel) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters that `recovery` trains, in float32, and freeze all other parameters.

    Inside the `with` block, dropout and the noise of routers are off, because the dense model
    predicts without them, too. At the end of the block, the tensors of the model get their original
    dtypes back, and the modules get their original classes back.
    """
    # 1. copy all tensors, because the compressed model may share unpruned tensors with the dense
    # model
    before = _copy_tensors(model, keep_bfloat16=recovery.rank is not None)
    model.requires_grad_(False)
    if recovery.gradient_checkpointing:
        model.activation_checkpointing_enable()

    # 2. choose the parameters to train. They are all in the decoder, so a vision tower is not
    # trained.
    decoder = adapt(model).decoder
    adapted = None
    if recovery.rank is None:
        trained = _all_but_embeddings(decoder)
    else:
        adapted = _with_adapters(decoder, recovery.rank)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(True)

    with ExitStack() as changed:
        for owner, name in list(_dropouts(decoder)):
            changed.enter_context(replaced(name, 0.0, owner))
        yield trained

    # 3. make the compressed model an ordinary model again
    if adapted is not None:
        adapted.merge_and_unload()
    if recovery.gradient_checkpointing:
        model.activation_checkpointing_disable()
    for parameter, (dtype, requires_grad) in before.items():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(requires_grad)
    model.eval()


def _dropouts(decoder: PreTrainedModel) -> Iterator[tuple[Any, str]]:
    """Yield each attribute that is a rate of dropout or noise, as a pair of owner and name.

    The owner is a module or the decoder's config.
    """
    for owner in (*decoder.modules(), decoder.config):
        for name, value in vars(owner).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_rate = "drop" in name or "jitter" in name
            if isinstance(owner, nn.Dropout) and name == "p":
                is_rate = True
            if is_rate and is_number:
                yield owner, name


def _with_adapters(decoder: PreTrainedModel, rank: int) -> Any:
    """Add the matrices A and B of low-rank updates to every Linear of the decoder, in float32.

    The method `merge_and_unload` of the returned model merges the updates into the weights.
    """
    # imported here, so that runs without low-rank training do not wait for the import of peft
    from peft import LoraConfig, get_peft_model

    options = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with warnings.catch_warnings():
        # ignore the warning that peft uses a deprecated name of transformers
        warnings.simplefilter("ignore", FutureWarning)
        # ignore peft's warning that it has set the option fan_in_fan_out for the Conv1D of GPT-2
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
        return get_peft_model(decoder, options)


def _all_but_embeddings(decoder: PreTrainedModel) -> list[nn.Parameter]:
    frozen = set()
    for module in decoder.modules():
        if isinstance(module, nn.Embedding):
            frozen |= {id(parameter) for parameter in module.parameters()}
    return [parameter for parameter in decoder.parameters() if id(parameter) not in frozen]


def _copy_tensors(
    model: PreTrainedModel, keep_bfloat16: bool
) -> dict[nn.Parameter, tuple[torch.dtype, bool]]:
    """Replace every parameter with a copy in float32. Tied parameters stay tied.

    Return a dict from each copy to the dtype and `requires_grad` of the original parameter.

    keep_bfloat16: whether the copies of bfloat16 parameters are in bfloat16 instead of float32.
    """
    copies: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, original in module.named_parameters(recurse=False):
            if original not in copies:
                keep = keep_bfloat16 and original.dtype == torch.bfloat16
                dtype = torch.bfloat16 if keep else torch.float32
                copies[original] = nn.Parameter(original.detach().to(dtype, copy=True))
            setattr(module, name, copies[original])
    return {copied: (original.dtype, original.requires_grad) for original, copied in copies.items()}
