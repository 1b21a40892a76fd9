"""vLLM's plugin entry point (`vllm.general_plugins`): pruned checkpoints without `trust_remote_code`.

vLLM calls `register` in each of its processes. The pruned architectures are served by its Transformers backend, which
builds their layers with the classes of `modeling_flap.py`.
"""

from flap.checkpoint import modeling_flap
from flap.checkpoint.register import register as register_with_transformers

MIXTURES = ("Mixtral", "Qwen3Moe")
BACKEND = "vllm.model_executor.models.transformers:{}"  # vLLM imports it when it builds such a model


def register() -> None:
    """Register the pruned architectures with transformers and with vLLM."""
    from vllm import ModelRegistry

    register_with_transformers()
    for architecture in modeling_flap.ARCHITECTURES:
        kind = "TransformersMoEForCausalLM" if architecture in MIXTURES else "TransformersForCausalLM"
        ModelRegistry.register_model(f"Flap{architecture}ForCausalLM", BACKEND.format(kind))
