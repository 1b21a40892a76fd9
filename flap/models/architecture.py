"""Find the `Family`, the transformers classes and the `ModelAdapter` of an architecture.

A family is a set of architectures whose modules have the same names. An adapter gives access to the
attentions, MLPs and other parts of a model.
"""

from difflib import get_close_matches
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from flap.modeling.families import FAMILIES, TOWERS, Family, family_of
from flap.models.adapter import ModelAdapter
from flap.models.mixture_adapter import MixtureAdapter


def find_family(config: PreTrainedConfig) -> Family:
    """Look up the family of a model by the `model_type` of its config.

    A vision-language model has the family of its language model, because only the language model is
    pruned.

    Raises:
        ValueError: the architecture, or an option that the config turns on, is not supported. The
            message says what is supported.
    """
    # remove the prefix that pruned models add to the model type, because they can be pruned again
    model_type = config.model_type.removeprefix("flap_")
    if model_type in TOWERS:
        find_family(config.get_text_config())  # checks that the language model is supported
        return family_of(config)
    if model_type in FAMILIES:
        family = family_of(config)
        _check_supported(config, family)
        return family
    if hasattr(config, "vision_config"):
        raise ValueError(
            f"model.path: vision-language model '{config.model_type}' is not supported; supported "
            f"are {', '.join(sorted(TOWERS))}; expected one of them, or a checkpoint of its "
            f"language model alone (model_type {config.get_text_config().model_type})"
        )
    nearest = get_close_matches(model_type, FAMILIES, 1)
    hint = f"; the nearest is {nearest[0]}" if nearest else ""
    raise ValueError(
        f"model.path: architecture '{config.model_type}' is not supported{hint}; supported are "
        f"{', '.join(sorted(FAMILIES))}; to add one, write its row in flap/modeling/families.py "
        "(CONTRIBUTING.md, 'A new family')"
    )


def _check_supported(config: PreTrainedConfig, family: Family) -> None:
    for key in family.without:
        value = getattr(config, key)
        if value:
            off = "false" if value is True else "0"
            raise ValueError(
                f"model.path: {config.model_type} with {key}={str(value).lower()} is not "
                f"supported; expected {key}={off}"
            )


def sees_images(config: PreTrainedConfig) -> bool:
    """Return whether a model with this config is a vision-language model."""
    return config.model_type.removeprefix("flap_") in TOWERS


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the Auto class of transformers that loads a model with this config."""
    return AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM


def stock_class(cls: type) -> Any:
    """Return the first transformers class in the MRO of a class, or nn.Module if there is none."""
    for base in cls.__mro__:
        if base.__module__.startswith("transformers."):
            return base
    return nn.Module


def adapt(model: PreTrainedModel, whole_experts: bool = False) -> ModelAdapter:
    """Return the adapter of a model. The model may be on the meta device.

    whole_experts: whether pruning removes whole experts, instead of neurons of each expert.

    Raises:
        ValueError: the architecture is not supported; the model has no LM head; the class of the
            model, of its decoder or of a layer overrides the `forward` of a transformers class; or
            `whole_experts` is true, but pruning cannot remove whole experts of this model.
    """
    family = find_family(model.config)
    head = "ForConditionalGeneration" if sees_images(model.config) else "ForCausalLM"
    if not stock_class(type(model)).__name__.endswith((head, "LMHeadModel")):
        raise ValueError(
            f"model: {type(model).__name__} derives from no …{head} class of transformers, which "
            "has a head"
        )
    # The classes of the decoder and of the layers are checked below, because an adapter is needed
    # to find the decoder and the layers.
    for cls in (type(model), type(model.base_model)):
        _check_forward(cls)
    if whole_experts:
        _check_whole_experts(family, model)
    adapter = ModelAdapter(model, family)
    if family.experts:
        adapter = MixtureAdapter(model, family, whole_experts)
    for cls in dict.fromkeys(map(type, (adapter.decoder, *adapter.layers))):
        _check_forward(cls)
    return adapter


def _check_forward(cls: type) -> None:
    """Check that a class does not override the `forward` of its transformers class.

    Checkpoints of pruned models are built from the transformers class, so they would lose the
    changes of a subclass.
    """
    stock = stock_class(cls)
    if stock is nn.Module or cls.forward is not stock.forward:  # type: ignore[attr-defined]
        raise ValueError(
            f"model: {cls.__name__} overrides forward, but a checkpoint of the pruned model would "
            "not have this method; expected a class of transformers"
        )


def _check_whole_experts(family: Family, model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    refused = (
        f"structure.experts=true, or a plan of experts: expected neither for {config.model_type}"
    )
    has_experts = any(name.endswith(f".{family.experts}") for name, _ in model.named_modules())
    if not family.router or not has_experts:
        allowed = ", ".join(name for name, one in FAMILIES.items() if one.router)
        raise ValueError(f"{refused}; or one of {allowed}")
    groups = getattr(config, "n_group", None) or 1
    if groups > 1:
        raise ValueError(
            f"{refused} with n_group={groups}, whose router chooses among groups of as many "
            "experts each"
        )
