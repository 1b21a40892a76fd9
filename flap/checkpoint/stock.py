"""The stock form: where all layers have one width, the base architecture holds the model, with no code of ours."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from flap.models import ModelAdapter, at_hand
from flap.models.experts import GROUPED, experts_fit_kernel

BIAS_FLAGS = ("attention_bias", "mlp_bias", "use_bias", "enable_bias")  # config keys that give Linears a bias


def stock_class(cls: type) -> Any:
    """The class of transformers that this one is, or was made from."""
    return next(one for one in cls.__mro__ if one.__module__.startswith("transformers."))


def stock_config(adapter: ModelAdapter, shared: dict[str, Any]) -> PreTrainedConfig:
    """A config of the base architecture with a place for every tensor of the model; `shared`: all but the widths.

    As few bias flags are set as that takes. A flag may stand for more biases than there are: `fill_biases`.

    Raises:
        ValueError: there is none; says why.
    """
    widths: dict[str, int] = {}
    for i in range(len(adapter.layers)):
        if any(widths.setdefault(name, width) != width for name, width in adapter.widths(i).items()):
            raise ValueError("layers differ in width")
        if not experts_fit_kernel(adapter.mlp(i)):
            raise ValueError(f"experts whose width is no multiple of {GROUPED} need another kernel")
    problem = ""
    for flags in _subsets([name for name in BIAS_FLAGS if name in shared]):
        try:
            config = stock_class(type(adapter.model.config))(**shared | widths | dict.fromkeys(flags, True))
            _check_place(adapter.model, config)
            return cast(PreTrainedConfig, config)
        except (ValueError, StrictDataclassError) as error:  # the latter from a config's own checks
            problem = str(error).splitlines()[-1].strip().removeprefix("ValueError: ").removesuffix(".")
    raise ValueError(problem)


def fill_biases(model: PreTrainedModel, config: PreTrainedConfig) -> list[str]:
    """Give the model, as zeros, the biases that it has under `config` and lacks; returns their names."""
    missing = sorted(_shapes(_on_meta(model, config)).keys() - _shapes(model).keys())
    for name in missing:
        linear = cast(nn.Linear, model.get_submodule(name.removesuffix(".bias")))
        with at_hand(linear):
            zeros = linear.weight.new_zeros(linear.out_features)
            linear.bias = nn.Parameter(zeros, requires_grad=linear.weight.requires_grad)
    return missing


def _subsets(flags: list[str]) -> Iterator[tuple[str, ...]]:
    """All subsets, the smallest first."""
    for size in range(len(flags) + 1):
        yield from combinations(flags, size)


def _check_place(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    places = _shapes(_on_meta(model, config))
    for name, shape in _shapes(model).items():
        if places.get(name) != shape:
            raise ValueError(f"{config.model_type} has no place for {name} of shape {list(shape)}")


def _on_meta(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return cast(PreTrainedModel, stock_class(type(model))(config))


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}
