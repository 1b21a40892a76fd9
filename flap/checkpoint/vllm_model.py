"""vLLM's Transformers backend for pruned mixtures: experts of the widths of each layer."""

from copy import copy
from typing import Any

from vllm.model_executor.models.transformers import TransformersMoEForCausalLM as Mixture
from vllm.model_executor.models.transformers.moe import MoEMixin


class TransformersMoEForCausalLM(Mixture):
    """The backend under its own name, by which vLLM knows it: fused kernels run experts, each layer with its width.

    It leaves experts with biases to transformers, and all experts where layers differ in their number.
    """

    text_config: Any

    def recursive_replace(self) -> None:
        """Replace the modules of transformers by those of vLLM."""
        shared = self.text_config
        names = ("moe_intermediate_size", "intermediate_size")
        width = next(name for name in names if getattr(shared, name, None) is not None)
        layers = [shared.per_layer_config[i] for i in range(shared.num_hidden_layers)]
        experts = [
            module for name, module in self.model.named_modules() if name.endswith(".experts")
        ]
        if len({one.num_experts for one in experts}) > 1:
            super(MoEMixin, self).recursive_replace()
            return
        self.text_config = copy(shared)
        vars(self.text_config)[shared.attribute_map.get(width, width)] = [
            getattr(one, width) for one in layers
        ]
        super().recursive_replace()
        self.text_config = shared
