"""vLLM's Transformers backend for pruned mixtures of experts.

The layers of a pruned model may have different numbers of heads, neurons and experts. The width of
an expert is its number of neurons.
"""

from copy import copy
from typing import Any

from vllm.model_executor.models.transformers import TransformersMoEForCausalLM as Mixture
from vllm.model_executor.models.transformers.moe import MoEMixin


class TransformersMoEForCausalLM(Mixture):
    """vLLM's Transformers backend, extended for pruned mixtures of experts.

    vLLM looks this class up by its name, so it has the same name as its base class in vLLM.

    The fused kernels of vLLM run the experts, whose width may differ by layer. If experts have
    biases, or if layers differ in the number of experts, transformers runs the experts instead.
    """

    text_config: Any

    def recursive_replace(self) -> None:
        """Replace modules of transformers by modules of vLLM."""
        experts = []
        for name, module in self.model.named_modules():
            if name.endswith(".experts"):
                experts.append(module)
        if len({module.num_experts for module in experts}) > 1:
            super(MoEMixin, self).recursive_replace()
            return

        # vLLM reads the width of the experts from a config key. Its value may be a list with the
        # width of each layer, so put this list into a copy of the config.
        shared = self.text_config
        names = ("moe_intermediate_size", "intermediate_size")
        width = next(name for name in names if getattr(shared, name, None) is not None)
        layers = [shared.per_layer_config[i] for i in range(shared.num_hidden_layers)]
        self.text_config = copy(shared)
        key = shared.attribute_map.get(width, width)
        vars(self.text_config)[key] = [getattr(layer, width) for layer in layers]
        super().recursive_replace()
        self.text_config = shared
