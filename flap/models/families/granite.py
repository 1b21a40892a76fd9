"""Granite: LLaMA's module names, and logits divided by a constant."""

from torch import Tensor

from flap.models.families.llama import LlamaAdapter


class GraniteAdapter(LlamaAdapter):
    """The adapter of Granite."""

    model_types = ("granite",)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits divided by the config's `logits_scaling`."""
        scaling: float = self.model.config.logits_scaling
        return super().logits(hidden) / scaling
