"""vLLM's plugin entry point (`vllm.general_plugins`): pruned checkpoints without `trust_remote_code`.

vLLM calls `register` in each of its processes. The pruned architectures are served by its Transformers backend, which
builds their layers with the classes of `modeling_flap.py`. It refuses those that are left out here.
"""

from typing import Any

from flap.checkpoint.modeling_flap import check_for_vllm
from flap.checkpoint.register import DENSE, MIXTURES, architectures
from flap.checkpoint.register import register as register_with_transformers

# vLLM imports it when it builds such a model. Mixtures, too, have the class of dense models, which runs the experts of
# transformers: that for mixtures builds those of all layers with one width.
BACKEND = "vllm.model_executor.models.transformers:TransformersForCausalLM"

LEFT_OUT = (
    "falcon_h1",  # vLLM 0.32 loads it, and writes another text than transformers
)


class Checks:
    """What vLLM asks in the process of its user, before it starts others: in its table of checks by architecture."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise a RuntimeError if a layer's widths cannot be served, or not be split over vLLM's processes."""
        widths = vllm_config.model_config.hf_text_config.to_dict()["per_layer_config"]
        try:
            check_for_vllm(widths, vllm_config.parallel_config.tensor_parallel_size)
        except ValueError as error:  # which vLLM would print with lines of its own around it
            raise RuntimeError(str(error)) from None

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Change nothing."""


def register() -> None:
    """Register the pruned architectures with transformers and with vLLM."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    register_with_transformers()
    for architecture in architectures(tuple(name for name in DENSE + MIXTURES if name not in LEFT_OUT)):
        name = f"Flap{architecture}ForCausalLM"
        ModelRegistry.register_model(name, BACKEND)
        MODELS_CONFIG_MAP[name] = Checks
