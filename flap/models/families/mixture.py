"""Mixtral and Qwen3-MoE: LLaMA's attention, and experts with a router; Qwen3-MoE may have plain MLPs as well."""

from typing import Any

from flap.models.adapter import Block
from flap.models.experts import experts_block, refresh_experts
from flap.models.families.llama import LlamaAdapter


class MixtureAdapter(LlamaAdapter):
    """The adapter of mixtures of experts."""

    model_types = ("mixtral", "qwen3_moe")

    def mlp(self, layer: int) -> Block:
        """Return the experts of a layer as one block, or its plain MLP."""
        experts = self._experts(layer)
        return super().mlp(layer) if experts is None else experts_block(f"layer {layer} MLP", experts)

    def widths(self, layer: int) -> dict[str, int]:
        """Return the numbers of heads and neurons (of one expert) of a layer, by their names in the config."""
        widths, experts = super().widths(layer), self._experts(layer)
        if experts is not None:
            del widths["intermediate_size"]  # in Qwen3-MoE that is the width of its plain MLPs
            name = (
                "moe_intermediate_size" if hasattr(self.model.config, "moe_intermediate_size") else "intermediate_size"
            )
            widths[name] = experts.down_proj.shape[2]
        return widths

    def refresh(self, layer: int) -> None:
        """Update the widths of the experts or of the plain MLP."""
        experts = self._experts(layer)
        if experts is None:
            super().refresh(layer)
        else:
            refresh_experts(experts)

    def _experts(self, layer: int) -> Any:
        """Return the experts of a layer, or None if it has a plain MLP."""
        return getattr(self._modules(layer)[1], "experts", None)
