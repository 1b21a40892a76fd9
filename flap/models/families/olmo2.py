"""OLMo 2: LLaMA's module names, and RMS norms over the queries and the keys of all heads together."""

from dataclasses import replace

from flap.models.adapter import Block
from flap.models.families.llama import LlamaAdapter


class Olmo2Adapter(LlamaAdapter):
    """The adapter of OLMo 2."""

    model_types = ("olmo2",)

    def attention(self, layer: int) -> Block:
        """Return the attention of a layer, with the norms over its queries and keys."""
        module, _ = self._modules(layer)
        norms = ((module.q_norm, module.q_proj), (module.k_norm, module.k_proj))
        return replace(super().attention(layer), norms=norms)
