"""Gemma 2 and Gemma 3 (text): LLaMA's names, and logits under a soft cap."""

import torch
from torch import Tensor

from flap.models.families.llama import LlamaAdapter


class GemmaAdapter(LlamaAdapter):
    model_types = ("gemma2", "gemma3_text")

    def logits(self, hidden: Tensor) -> Tensor:
        """cap · tanh(logits / cap), where the config has a cap."""
        logits, cap = super().logits(hidden), self.model.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap
