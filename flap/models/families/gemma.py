"""Gemma 2 and Gemma 3 (text): LLaMA's module names, and logits with a soft cap."""

import torch
from torch import Tensor

from flap.models.families.llama import LlamaAdapter


class GemmaAdapter(LlamaAdapter):
    """The adapter of Gemma 2 and Gemma 3."""

    model_types = ("gemma2", "gemma3_text")

    def logits(self, hidden: Tensor) -> Tensor:
        """Return cap · tanh(logits / cap) if the config has a cap, else the logits."""
        logits, cap = super().logits(hidden), self.model.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap
