"""From the architecture of a model to its family (`flap.modeling.families`), its classes and its adapter."""

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
    """Return the family of an architecture by its `model_type`; no weight needs to be loaded.

    That of a vision-language model is the family of its language model, which is all of it that is pruned.

    Raises:
        ValueError: no family has this architecture; the message names the nearest, lists all, and says how to add one.
    """
    model_type = config.model_type.removeprefix("flap_")  # a pruned model can be pruned again
    if model_type in TOWERS:
        find_family(config.get_text_config())  # which checks it
        return family_of(config)
    if model_type in FAMILIES:
        family = family_of(config)
        for key in family.without:
            if value := getattr(config, key):
                refused = f"model.path: {config.model_type} with {key}={str(value).lower()} is not supported"
                raise ValueError(f"{refused}; expected {key}={'false' if value is True else 0}")
        return family
    if hasattr(config, "vision_config"):
        raise ValueError(
            f"model.path: vision-language model '{config.model_type}' is not supported; supported are "
            f"{', '.join(sorted(TOWERS))}; expected one of them, or a checkpoint of its language model alone "
            f"(model_type {config.get_text_config().model_type})"
        )
    nearest = "".join(
        f"; the nearest is {name}" for name in get_close_matches(model_type, FAMILIES, 1)
    )
    raise ValueError(
        f"model.path: architecture '{config.model_type}' is not supported{nearest}; "
        f"supported are {', '.join(sorted(FAMILIES))}; to add one, write its row in flap/modeling/families.py "
        "(CONTRIBUTING.md, 'A new family')"
    )


def sees_images(config: PreTrainedConfig) -> bool:
    """Return whether a model of this config is a vision-language model."""
    return config.model_type.removeprefix("flap_") in TOWERS


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the Auto class of transformers that loads a model of this config as a whole, with its head."""
    return AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM


def stock_class(cls: type) -> Any:
    """Return the class of transformers that this class is, or derives from; else nn.Module."""
    return next(
        (base for base in cls.__mro__ if base.__module__.startswith("transformers.")), nn.Module
    )


def adapt(model: PreTrainedModel, whole_experts: bool = False) -> ModelAdapter:
    """Return the adapter of a loaded model. whole_experts: the units of experts are whole experts.

    Raises:
        ValueError: the architecture is not supported, the model has no language model head or computes something of
            its own, or it has no whole experts that can be removed.
    """
    family = find_family(model.config)
    head = "ForConditionalGeneration" if sees_images(model.config) else "ForCausalLM"
    if not stock_class(type(model)).__name__.endswith((head, "LMHeadModel")):
        raise ValueError(
            f"model: {type(model).__name__} derives from no …{head} class of transformers, which has a head"
        )
    for cls in (type(model), type(model.base_model)):  # in which the others are found
        _check_forward(cls)
    if whole_experts:
        _check_whole_experts(family, model)
    adapter = (
        MixtureAdapter(model, family, whole_experts)
        if family.experts
        else ModelAdapter(model, family)
    )
    for cls in dict.fromkeys(map(type, (adapter.decoder, *adapter.layers))):
        _check_forward(cls)
    return adapter


def _check_forward(cls: type) -> None:
    """Check that a class computes what that of transformers does, whose place is taken by the pruned model's class."""
    stock = stock_class(cls)
    if stock is nn.Module or cls.forward is not stock.forward:  # type: ignore[attr-defined]
        raise ValueError(
            f"model: {cls.__name__} has a forward of its own, which a checkpoint of the pruned model would not have; "
            "expected a class of transformers"
        )


def _check_whole_experts(family: Family, model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    refused = (
        f"structure.experts=true, or a plan of experts: expected neither for {config.model_type}"
    )
    if not family.router or not any(
        name.endswith(f".{family.experts}") for name, _ in model.named_modules()
    ):
        allowed = ", ".join(name for name, one in FAMILIES.items() if one.router)
        raise ValueError(f"{refused}; or one of {allowed}")
    if (groups := getattr(config, "n_group", None) or 1) > 1:
        raise ValueError(
            f"{refused} with n_group={groups}, whose router chooses among groups of as many experts each"
        )
