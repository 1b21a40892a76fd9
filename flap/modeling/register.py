"""Register the pruned architectures with transformers' Auto classes."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from flap.modeling import modeling_flap
from flap.modeling.families import FAMILIES, TOWERS, family_of


def register() -> None:
    """Register all pruned architectures with transformers' Auto classes.

    After this call, transformers can load pruned checkpoints without `trust_remote_code`. Further
    calls do nothing. `flap.load` and flap's command line work without this call.
    """
    for config_class in register_configs():
        register_models(config_class)


@cache
def register_configs() -> dict[type, tuple[str, str]]:
    """Register the configs of all pruned architectures, without importing model classes.

    Return a dict from each config class to the names of two transformers classes: the model without
    an LM head, and the model with an LM head. The pruned model classes derive from these two.
    """
    modeling_flap.find_modules = _find_modules
    configs: dict[type, tuple[str, str]] = {}
    for model_types, heads in (
        (FAMILIES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (TOWERS, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    ):
        for model_type in known(model_types, heads):
            config_class = modeling_flap.pruned_class(CONFIG_MAPPING_NAMES[model_type])
            AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
            configs[config_class] = (MODEL_MAPPING_NAMES[model_type], heads[model_type])
    return configs


def register_models(config_class: type) -> None:
    """Register the model classes that belong to a config class.

    Do nothing if the config class does not belong to a pruned architecture.
    """
    for name in register_configs().get(config_class, ()):
        model_class = modeling_flap.pruned_class(name)
        auto_class = getattr(transformers, model_class._auto_class)
        auto_class.register(config_class, model_class, exist_ok=True)


def known(model_types: Iterable[str], classes: Mapping[str, str]) -> list[str]:
    """Return the model types for which this version of transformers has a class.

    classes: the names of transformers' classes. The keys are the model types.
    """
    return [model_type for model_type in model_types if model_type in classes]


def _find_modules(config: Any) -> dict[str, Any]:
    return family_of(config).modules
