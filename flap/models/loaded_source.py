"""A model that the caller has loaded, as the source of a run."""

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
from flap.models.placement import PlacedModel, Resident, Spread
from flap.models.source import ModelSource
from flap.storage import NOT_KEPT, WorkFolder


class LoadedSource(ModelSource):
    """A model that the caller has loaded.

    Raises:
        ValueError: it is no model of transformers, it has adapters, its weights are packed, as 4-bit ones are, or on
            meta, or there is no tokenizer.
    """

    loaded = True
    origin = "loaded by the caller"
    trust_remote_code = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        expected = "a model of transformers that is loaded already, as by AutoModelForCausalLM.from_pretrained"
        if isinstance(model, nn.Module):
            check_plain(model)
        require(isinstance(model, PreTrainedModel), "model", type(model).__name__, expected)
        allowed = "the tokenizer of the model"
        require(
            isinstance(tokenizer, PreTrainedTokenizerBase),
            "tokenizer",
            type(tokenizer).__name__,
            allowed,
        )
        self.model, self.tokenizer, self._unique = model, tokenizer, uuid4().hex
        self.config, self.device = model.config, running_device(model)
        self.path = str(getattr(self.config, "_name_or_path", ""))
        self.placed = Spread if is_spread(model) else Resident

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.model.dtype)

    @property
    def num_bytes(self) -> int:
        return int(
            self.dtype.itemsize * sum(parameter.numel() for parameter in self.model.parameters())
        )

    @property
    def described(self) -> ModelConfig:
        """The section `model` of a run's config, for this model. Where it names no origin, `path` is empty."""
        dtype = str(self.dtype).removeprefix("torch.")
        name = Path(self.path).name or type(self.model).__name__
        return ModelConfig(name, self.path, dtype, self.device.type, placement=self.placement)

    def identity(self) -> dict[str, Any]:
        """Return what no other model has: its caller may change weights and code, so nothing is cached for it."""
        return {"model": self._unique}

    def skeleton(self) -> PreTrainedModel:
        return self.model

    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        return self.placed(self.model.eval())

    def reopening(self) -> Callable[[], PlacedModel]:
        """Return a function that returns a copy that shares the tensors of now; pruning makes others."""
        shared = {
            id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())
        }
        return partial(Resident, copy.deepcopy(self.model, shared))


def check_plain(model: PreTrainedModel) -> None:
    """Check that the weights of a loaded model are plain tensors, which can be sliced.

    Raises:
        ValueError: they are packed: a quantiser has loaded them so, or their type has less than 16 bits; or the model
            has adapters, as those of peft.
    """
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError(
            "model: it has adapters, as LoRA; expected a model after merge_and_unload()"
        )
    quantiser = getattr(model, "hf_quantizer", None)
    types = {parameter.dtype for parameter in model.parameters()}
    packed = [str(one) for one in types if not one.is_floating_point or one.itemsize < 2]
    method = quantiser.quantization_config.quant_method if quantiser else None
    # weights from a GGUF are packed only if their types say so
    if packed or (
        quantiser
        and method != "gguf"
        and not getattr(quantiser.quantization_config, "dequantize", False)
    ):
        raise ValueError(
            f"model: its weights are packed ({getattr(method, 'value', packed[:1])}); expected bfloat16, float16 or "
            "float32: load the model without quantization_config, or call model.dequantize() first"
        )
