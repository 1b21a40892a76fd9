"""Access the attentions, experts and other parts of mixtures of experts.

Some layers may have a plain MLP instead of experts.
"""

from typing import Any

from transformers import PreTrainedModel

from flap.modeling.families import Family
from flap.models.adapter import ModelAdapter
from flap.models.block import Block
from flap.models.experts import experts_block
from flap.models.stacked_experts import num_neurons, refresh_experts
from flap.models.whole_experts import whole_experts


class MixtureAdapter(ModelAdapter):
    """Gives access to the attentions, experts and other parts of a mixture of experts.

    Shared experts, which every token uses, are not pruned.

    whole: whether pruning removes whole experts, instead of neurons of each expert.
    """

    def __init__(self, model: PreTrainedModel, family: Family, whole: bool) -> None:
        super().__init__(model, family)
        self.whole = whole

    def mlp(self, layer: int) -> Block:
        experts = self._experts(layer)
        if experts is None:
            return super().mlp(layer)
        name = f"layer {layer} MLP"
        chosen = int(getattr(self.config, self.family.chosen_experts))
        if not self.whole:
            return experts_block(name, experts, chosen)
        router = self.layers[layer].get_submodule(self.family.router)
        parent = self.parent(layer, self.family.router)
        return whole_experts(name, experts, chosen, router, parent)

    def widths(self, layer: int) -> dict[str, int]:
        widths = super().widths(layer)
        experts = self._experts(layer)
        if experts is not None:
            widths.pop(self.family.neurons, None)
            if self.family.router:
                widths[self.family.num_experts] = experts.num_experts
            widths[self.family.expert_neurons or self.family.neurons] = num_neurons(experts)
        return widths

    def refresh_mlp(self, layer: int) -> None:
        experts = self._experts(layer)
        if experts is None:
            super().refresh_mlp(layer)
            return
        refresh_experts(experts)
        if self.family.router:
            router: Any = self.layers[layer].get_submodule(self.family.router)
            router.num_experts = experts.num_experts

    def _experts(self, layer: int) -> Any:
        """Return the experts of a layer, or None if the layer has a plain MLP."""
        return dict(self.layers[layer].named_modules()).get(self.family.experts)
