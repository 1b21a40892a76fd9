"""Registration of the pruned architectures with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from flap.checkpoint import modeling_flap


def register() -> None:
    """Register the pruned architectures with transformers' Auto classes, which then need no `trust_remote_code`."""
    for architecture in modeling_flap.ARCHITECTURES:
        config, model, causal = (
            getattr(modeling_flap, f"Flap{architecture}{kind}") for kind in modeling_flap.AUTO_CLASSES.values()
        )
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, causal, exist_ok=True)
