"""The families with experts and a router, in all layers or in some; the other layers have a plain MLP."""

from typing import Any

from flap.models.adapter import Block
from flap.models.experts import experts_block, num_neurons, refresh_experts
from flap.models.families.usual import UsualAdapter


class MixtureAdapter(UsualAdapter):
    """The adapter of mixtures of experts. An expert that every token is sent to (a shared one) stays as it is."""

    def mlp(self, layer: int) -> Block:
        """Return the experts of a layer as one block, or its plain MLP."""
        experts = self._experts(layer)
        return super().mlp(layer) if experts is None else experts_block(f"layer {layer} MLP", experts)

    def widths(self, layer: int) -> dict[str, int]:
        """Return the numbers of heads and neurons (of one expert) of a layer, by their names in the config."""
        widths, experts = super().widths(layer), self._experts(layer)
        if experts is not None:
            del widths[self.family.neurons]
            widths[self.family.expert_neurons or self.family.neurons] = num_neurons(experts)
        return widths

    def refresh_mlp(self, layer: int) -> None:
        """Update the widths of the experts or of the plain MLP."""
        experts = self._experts(layer)
        if experts is None:
            super().refresh_mlp(layer)
        else:
            refresh_experts(experts)

    def _experts(self, layer: int) -> Any:
        """Return the experts of a layer, or None if it has a plain MLP."""
        return dict(self.layers[layer].named_modules()).get(self.family.experts)
