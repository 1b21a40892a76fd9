"""Registration of the pruned architectures with transformers' Auto classes."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from flap.modeling import modeling_flap
from flap.modeling.families import FAMILIES, TOWERS


def register() -> None:
    """Register all pruned architectures with transformers' Auto classes, which then need no `trust_remote_code`.

    May be called again. `flap.load` and the command line need no call of it.
    """
    for config in register_configs():
        register_models(config)


@cache
def register_configs() -> dict[type, tuple[str, Mapping[str, str]]]:
    """Register the configs, which imports no model; return for each its architecture and the kinds of its classes."""
    dense = architectures(FAMILIES), modeling_flap.AUTO_CLASSES
    vision = (
        architectures(TOWERS, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        modeling_flap.WHOLE_AUTO_CLASSES,
    )
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
            getattr(transformers, auto).register(
                config, modeling_flap.pruned_class(architecture, kind), exist_ok=True
            )


def architectures(
    model_types: Iterable[str], classes: Mapping[str, Any] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
) -> Iterator[str]:
    """Yield the names of the architectures that this version of transformers has: the prefixes of their class names."""
    for model_type in model_types:
        if model_type in classes:
            yield architecture_name(classes[model_type])


def architecture_name(model_class: str) -> str:
    """Return the name of an architecture, such as Llama of LlamaForCausalLM, or GPT2 of GPT2LMHeadModel."""
    return (
        model_class.removesuffix("ForCausalLM")
        .removesuffix("LMHeadModel")
        .removesuffix("ForConditionalGeneration")
    )
