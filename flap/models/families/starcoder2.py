"""StarCoder2: LLaMA's attention, and a plain MLP."""

from flap.models.adapter import Block, split
from flap.models.families.llama import LlamaAdapter


class Starcoder2Adapter(LlamaAdapter):
    """The adapter of StarCoder2."""

    model_types = ("starcoder2",)

    def mlp(self, layer: int) -> Block:
        """Return the MLP of a layer; its units are neurons."""
        _, module = self._modules(layer)
        neurons = split(module.c_proj.in_features, module.c_proj.in_features)
        return Block(f"layer {layer} MLP", module.c_proj, neurons, ((module.c_fc, neurons),))

    def refresh(self, layer: int) -> None:
        """Do nothing: the modules hold no width."""
