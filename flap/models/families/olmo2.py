"""OLMo 2: LLaMA's names, and RMS norms over the queries and keys of all heads at once."""

from dataclasses import replace

from flap.models.adapter import Block
from flap.models.families.llama import LlamaAdapter


class Olmo2Adapter(LlamaAdapter):
    model_types = ("olmo2",)

    def attention(self, layer: int) -> Block:
        module, _ = self._modules(layer)
        norms = ((module.q_norm, module.q_proj), (module.k_norm, module.k_proj))
        return replace(super().attention(layer), norms=norms)
