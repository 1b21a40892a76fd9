"""Mixtral and Qwen3-MoE: LLaMA's attention, and experts that a router chooses from; Qwen3 may mix in plain MLPs."""

from typing import Any

from flap.models.adapter import Block
from flap.models.experts import experts_block, run_as_its_width_allows
from flap.models.families.llama import LlamaAdapter


class MixtureAdapter(LlamaAdapter):
    model_types = ("mixtral", "qwen3_moe")

    def mlp(self, layer: int) -> Block:
        experts = self._experts(layer)
        return super().mlp(layer) if experts is None else experts_block(f"layer {layer} MLP", experts)

    def widths(self, layer: int) -> dict[str, int]:
        widths, experts = super().widths(layer), self._experts(layer)
        if experts is not None:
            del widths["intermediate_size"]  # of a plain MLP, which Qwen3-MoE gives another width
            own = (
                "moe_intermediate_size" if hasattr(self.model.config, "moe_intermediate_size") else "intermediate_size"
            )
            widths[own] = experts.down_proj.shape[2]
        return widths

    def refresh(self, layer: int) -> None:
        experts = self._experts(layer)
        if experts is None:
            super().refresh(layer)
        else:
            run_as_its_width_allows(experts)

    def _experts(self, layer: int) -> Any:
        """The experts of a layer, or None where it has a plain MLP."""
        return getattr(self._modules(layer)[1], "experts", None)
