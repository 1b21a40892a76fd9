"""vLLM's Transformers backend for pruned checkpoints: units of zeros where a layer has none, because vLLM needs one."""

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from vllm.model_executor.models import transformers as backend


class TransformersForCausalLM(backend.TransformersForCausalLM):
    """The backend, under its own name, by which vLLM tells in other places that a model runs in it."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights of a checkpoint, zeros for those without elements; return the names of all."""
        full = ((name, weight if weight.numel() else weight.new_zeros(self._shapes[name])) for name, weight in weights)
        loaded: set[str] = super().load_weights(full)
        return loaded

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        """The shapes that the config asks for, before vLLM fuses matrices and splits them over its processes."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}
