"""Granite: LLaMA's names, and logits divided by a constant."""

from torch import Tensor

from flap.models.families.llama import LlamaAdapter


class GraniteAdapter(LlamaAdapter):
    model_types = ("granite",)

    def logits(self, hidden: Tensor) -> Tensor:
        scaling: float = self.model.config.logits_scaling
        return super().logits(hidden) / scaling
