"""vLLM's plugin entry point (`vllm.general_plugins`): pruned checkpoints without `trust_remote_code`.

vLLM calls `register` in each of its processes. The pruned architectures are served by its Transformers backend, which
builds their layers with the classes of `modeling_flap.py`. It refuses those that are left out here.
"""

from flap.checkpoint.register import DENSE, MIXTURES, architectures
from flap.checkpoint.register import register as register_with_transformers

BACKEND = "vllm.model_executor.models.transformers:{}"  # vLLM imports it when it builds such a model

LEFT_OUT = (
    "falcon_h1",  # vLLM 0.32 loads it, and writes another text than transformers
    "llama4_text",
    "gemma4_text",  # not tried
)


def register() -> None:
    """Register the pruned architectures with transformers and with vLLM."""
    from vllm import ModelRegistry

    register_with_transformers()
    for model_types, kind in ((DENSE, "TransformersForCausalLM"), (MIXTURES, "TransformersMoEForCausalLM")):
        for architecture in architectures(tuple(name for name in model_types if name not in LEFT_OUT)):
            ModelRegistry.register_model(f"Flap{architecture}ForCausalLM", BACKEND.format(kind))
