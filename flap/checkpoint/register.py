"""Registration of the pruned architectures with transformers' Auto classes."""

from collections.abc import Iterator

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flap.checkpoint import modeling_flap

# The table of families by `model_type`. Its room cannot be imported beside an engine, where what it needs is missing.
DENSE = (
    "llama", "mistral", "ministral3", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text",
    "cohere2", "ernie4_5", "exaone4", "hunyuan_v1_dense", "seed_oss", "stablelm", "olmo2", "olmo3", "glm4",
    "apertus", "arcee", "nemotron", "phi", "phi3", "starcoder2", "opt", "gpt_neox", "falcon", "gpt2",
    "qwen3_5_text", "falcon_h1",
)  # fmt: skip
MIXTURES = (
    "mixtral", "granitemoe", "gpt_oss", "olmoe", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_next",
)  # fmt: skip


def register() -> None:
    """Register the pruned architectures with transformers' Auto classes, which then need no `trust_remote_code`."""
    for architecture in architectures(DENSE + MIXTURES):
        config, model, causal = (
            modeling_flap.pruned_class(architecture, kind) for kind in modeling_flap.AUTO_CLASSES.values()
        )
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, causal, exist_ok=True)


def architectures(model_types: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of the architectures that this version of transformers has: the prefixes of their class names."""
    for model_type in model_types:
        if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            yield architecture_name(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def architecture_name(causal_class: str) -> str:
    """Return the name of an architecture, such as Llama of LlamaForCausalLM, or GPT2 of GPT2LMHeadModel."""
    return causal_class.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
