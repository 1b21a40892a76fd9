"""Registration of the pruned architectures with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flap.checkpoint import modeling_flap


def register() -> None:
    """Register the pruned architectures with transformers' Auto classes, which then need no `trust_remote_code`."""
    from flap.models.families import FAMILIES

    for model_type in FAMILIES:
        architecture = architecture_name(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        config, model, causal = (
            modeling_flap.pruned_class(architecture, kind) for kind in modeling_flap.AUTO_CLASSES.values()
        )
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, causal, exist_ok=True)


def architecture_name(causal_class: str) -> str:
    """Return the name of an architecture, such as Llama of LlamaForCausalLM, or GPT2 of GPT2LMHeadModel."""
    return causal_class.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
