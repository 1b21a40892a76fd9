"""vLLM's Transformers backend for pruned checkpoints: units of zeros where a layer has none, and widths of experts."""

from collections.abc import Iterable
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from vllm.model_executor.models.transformers import TransformersForCausalLM as Dense
from vllm.model_executor.models.transformers import TransformersMoEForCausalLM as Mixture
from vllm.model_executor.models.transformers.moe import MoEMixin


class LoadsEmptyBlocks:
    """The loading of checkpoints in which a layer may have no heads or neurons, because vLLM needs one."""

    config: Any

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights of a checkpoint, zeros for those without elements; return the names of all."""
        full = ((name, weight if weight.numel() else weight.new_zeros(self._shapes[name])) for name, weight in weights)
        loaded: set[str] = super().load_weights(full)  # type: ignore[misc]
        return loaded

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        """The shapes that the config asks for, before vLLM fuses matrices and splits them over its processes."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}


class TransformersForCausalLM(LoadsEmptyBlocks, Dense):
    """The backend, under its own name, by which vLLM tells in other places that a model runs in it."""


class TransformersMoEForCausalLM(LoadsEmptyBlocks, Mixture):
    """The backend for mixtures: vLLM's fused kernels run experts, in each layer with the width of that layer.

    It leaves experts with biases to transformers, and all experts where layers differ in their number.
    """

    text_config: Any

    def recursive_replace(self) -> None:
        """Replace the modules of transformers by those of vLLM."""
        shared, names = self.text_config, ("moe_intermediate_size", "intermediate_size")
        width = next(name for name in names if getattr(shared, name, None) is not None)
        layers = [shared.per_layer_config[i] for i in range(shared.num_hidden_layers)]
        experts = [module for name, module in self.model.named_modules() if name.endswith(".experts")]
        if len({one.num_experts for one in experts}) > 1:
            super(MoEMixin, self).recursive_replace()
            return
        self.text_config = copy(shared)
        vars(self.text_config)[shared.attribute_map.get(width, width)] = [getattr(one, width) for one in layers]
        super().recursive_replace()
        self.text_config = shared
