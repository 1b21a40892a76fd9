"""Describe a dense (unpruned) model that the caller of `flap.prune` has already loaded."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.config import ModelConfig, require
from flap.models.offload import is_spread, running_device
from flap.models.placed_model import PlacedModel
from flap.models.placement import Resident, Spread
from flap.models.source import ModelSource
from flap.storage import NOT_KEPT, WorkFolder


class LoadedSource(ModelSource):
    """A model that the caller has loaded.

    Raises:
        ValueError: `model` is no transformers model, has adapters such as LoRA, or has weights that
            are quantised or on the meta device; or `tokenizer` is not from transformers.
    """

    loaded = True
    origin = "loaded by the caller"
    trust_remote_code = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if isinstance(model, nn.Module):
            check_plain(model)
        require(
            isinstance(model, PreTrainedModel),
            "model",
            type(model).__name__,
            "a model of transformers that is loaded already, as by "
            "AutoModelForCausalLM.from_pretrained",
        )
        require(
            isinstance(tokenizer, PreTrainedTokenizerBase),
            "tokenizer",
            type(tokenizer).__name__,
            "the tokenizer of the model",
        )
        self.model = model
        self.tokenizer = tokenizer
        self.config = model.config
        self.device = running_device(model)
        self._unique = uuid4().hex
        self.path = str(getattr(self.config, "_name_or_path", ""))
        self.placed = Spread if is_spread(model) else Resident

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.model.dtype)

    @property
    def num_bytes(self) -> int:
        return int(self.model.num_parameters() * self.dtype.itemsize)

    @property
    def described(self) -> ModelConfig:
        """The config section `model` for the report of the run.

        `path` is empty if the model has no name or path.
        """
        dtype = str(self.dtype).removeprefix("torch.")
        name = Path(self.path).name or type(self.model).__name__
        return ModelConfig(name, self.path, dtype, self.device.type, placement=self.placement)

    def identity(self) -> dict[str, Any]:
        """Return an identity that no other `LoadedSource` has, so that no cached result is used.

        The caller may have changed the weights and the code since a result was cached.
        """
        return {"model": self._unique}

    def skeleton(self) -> PreTrainedModel:
        return self.model

    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        return self.placed(self.model.eval())

    def reopening(self) -> Callable[[], PlacedModel]:
        """Copy the model before pruning, and return a function that opens the copy.

        The copy shares all tensors with the model. The copy stays dense, because pruning replaces
        the tensors of the model, and does not change their values.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        shared = {id(tensor): tensor for tensor in tensors}
        return partial(Resident, copy.deepcopy(self.model, shared))


def check_plain(model: PreTrainedModel) -> None:
    """Check that a loaded model has plain weights, which can be sliced, and no adapters.

    Raises:
        ValueError: the weights are quantised, or their dtype is not a floating-point type of at
            least 16 bits, or the model has adapters, such as those of peft.
    """
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError(
            "model: it has adapters, as LoRA; expected a model after merge_and_unload()"
        )
    types = {parameter.dtype for parameter in model.parameters()}
    packed = [str(one) for one in types if not one.is_floating_point or one.itemsize < 2]
    quantiser = getattr(model, "hf_quantizer", None)
    method = None
    if quantiser is not None:
        method = quantiser.quantization_config.quant_method
        dequantised = getattr(quantiser.quantization_config, "dequantize", False)
        # A GGUF needs no entry here. transformers usually dequantises it while loading. Otherwise,
        # `packed` already contains the dtype of its weights.
        if method != "gguf" and not dequantised:
            packed.append(str(method))
    if packed:
        raise ValueError(
            f"model: its weights are packed ({getattr(method, 'value', packed[:1])}); expected "
            "bfloat16, float16 or float32: load the model without quantization_config, or call "
            "model.dequantize() first"
        )
