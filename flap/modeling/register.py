"""Registration of the pruned architectures with transformers' Auto classes."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from flap.modeling import modeling_flap

# The table of families by `model_type`. Its room cannot be imported beside an engine, where what it needs is missing.
DENSE = (
    "llama", "mistral", "ministral3", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text",
    "cohere2", "ernie4_5", "exaone4", "hunyuan_v1_dense", "seed_oss", "stablelm", "olmo2", "olmo3", "glm4",
    "apertus", "arcee", "nemotron", "phi", "phi3", "starcoder2", "opt", "gpt_neox", "falcon", "gpt2",
    "qwen3_5_text", "falcon_h1",
)  # fmt: skip
MIXTURES = (
    "mixtral", "granitemoe", "llama4_text", "gpt_oss", "olmoe", "qwen2_moe", "qwen3_moe", "gemma4_text", "glm4_moe",
    "deepseek_v3", "qwen3_next",
)  # fmt: skip
VISION = ("gemma3", "llava", "mistral3", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm")  # with a language model


def register() -> None:
    """Register all pruned architectures with transformers' Auto classes, which then need no `trust_remote_code`.

    May be called again. `flap.load` and the command line need no call of it.
    """
    for config in register_configs():
        register_models(config)


@cache
def register_configs() -> dict[type, tuple[str, Mapping[str, str]]]:
    """Register the configs, which imports no model; return for each its architecture and the kinds of its classes."""
    dense = architectures(DENSE + MIXTURES), modeling_flap.AUTO_CLASSES
    vision = architectures(VISION, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES), modeling_flap.WHOLE_AUTO_CLASSES
    configs: dict[type, tuple[str, Mapping[str, str]]] = {}
    for names, kinds in (dense, vision):
        for name in names:
            config = modeling_flap.pruned_class(name, kinds["AutoConfig"])
            AutoConfig.register(config.model_type, config, exist_ok=True)
            configs[config] = name, kinds
    return configs


def register_models(config: type) -> None:
    """Register the models of a class of config: the base model, and that with its head. Not pruned: nothing to do."""
    architecture, kinds = register_configs().get(config, ("", {}))
    for auto, kind in kinds.items():
        if auto != "AutoConfig":
            getattr(transformers, auto).register(config, modeling_flap.pruned_class(architecture, kind), exist_ok=True)


def architectures(
    model_types: tuple[str, ...], classes: Mapping[str, Any] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
) -> Iterator[str]:
    """Yield the names of the architectures that this version of transformers has: the prefixes of their class names."""
    for model_type in model_types:
        if model_type in classes:
            yield architecture_name(classes[model_type])


def architecture_name(model_class: str) -> str:
    """Return the name of an architecture, such as Llama of LlamaForCausalLM, or GPT2 of GPT2LMHeadModel."""
    return model_class.removesuffix("ForCausalLM").removesuffix("LMHeadModel").removesuffix("ForConditionalGeneration")
