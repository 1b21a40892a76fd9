"""The stock form: a model whose layers have equal widths can be saved as its base architecture, without our code."""

from collections.abc import Collection
from itertools import chain, combinations
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from flap.modeling.modeling_flap import KERNEL_MULTIPLE
from flap.models import ModelAdapter, PlacedModel, adapt, stock_class
from flap.models.block import set_tensor
from flap.models.stacked_experts import experts_fit_kernel

# Config keys that add biases to Linears.
BIAS_FLAGS = ("attention_bias", "mlp_bias", "use_bias", "enable_bias", "attention_out_bias", "bias")
# Config keys that belong to a class or a file and not to the model.
NOT_SHARED = (
    "model_type",
    "architectures",
    "transformers_version",
    "auto_map",
    "quantization_config",
)


def stock_config(adapter: ModelAdapter, shared: dict[str, Any]) -> PreTrainedConfig:
    """Return a config of the base architecture that has a place for every tensor of the model.

    shared: all config values but the widths. As few bias flags as possible are set. A flag may add biases that the
    model does not have; `fill_biases` adds those.

    Raises:
        ValueError: there is no such config; says why.
    """
    widths: dict[str, int] = {}
    for i in range(len(adapter.layers)):
        of_layer = adapter.widths(i)
        if any(widths.setdefault(name, width) != width for name, width in of_layer.items()):
            raise ValueError("layers differ in width")
        experts = getattr(adapter.mlp(i).output, "experts", None)
        if experts is not None and not experts_fit_kernel(experts):
            raise ValueError(
                f"experts whose width is no multiple of {KERNEL_MULTIPLE} need another kernel"
            )
    problem = ""
    names = [name for name in BIAS_FLAGS if name in shared]
    for flags in chain.from_iterable(combinations(names, size) for size in range(len(names) + 1)):
        try:
            config = _stock_config(adapter, shared | widths | dict.fromkeys(flags, True))
            places = _shapes(_on_meta(adapter.model, config))
            for name, shape in _shapes(adapter.model).items():
                if places.get(name) != shape:
                    raise ValueError(
                        f"{config.model_type} has no place for {name} of shape {list(shape)}"
                    )
            return config
        except (ValueError, StrictDataclassError) as error:  # the latter from a config's own checks
            problem = (
                str(error).splitlines()[-1].strip().removeprefix("ValueError: ").removesuffix(".")
            )
    raise ValueError(problem)


def _stock_config(adapter: ModelAdapter, values: dict[str, Any]) -> PreTrainedConfig:
    text_config = stock_class(type(adapter.config))(**values)
    return whole_config(adapter.model, stock_class(type(adapter.model.config)), text_config)


def whole_config(
    model: PreTrainedModel, config_class: Any, text_config: PreTrainedConfig, **changes: Any
) -> PreTrainedConfig:
    """Return the config of the whole model with another one of its language model: of a text model, that one.

    config_class: of a vision-language model. The configs of its other parts stay the same objects.
    """
    config = model.config
    if config.get_text_config() is config:
        return text_config
    shared = {key: value for key, value in config.to_dict().items() if key not in NOT_SHARED}
    parts = {name: getattr(config, name) for name in config.sub_configs} | {
        "text_config": text_config
    }
    owners = {"": config} | {
        name: part for name, part in parts.items() if part is not None
    }  # Gemma 4: no audio tower
    kernels = {  # else a new config resets those of its parts
        f"{kind}_implementation": {
            name: getattr(one, f"_{kind}_implementation") for name, one in owners.items()
        }
        for kind in ("attn", "experts")
    }
    return cast(PreTrainedConfig, config_class(**shared | parts | kernels | changes))


def takes_output_biases(adapter: ModelAdapter) -> bool:
    """Return whether the base architecture can have a bias in every output projection; the model may have none."""
    values = {
        key: value for key, value in adapter.config.to_dict().items() if key != "per_layer_config"
    }
    flags = dict.fromkeys((name for name in BIAS_FLAGS if name in values), True)
    biased = adapt(_on_meta(adapter.model, _stock_config(adapter, values | flags)))
    return all(
        block.output.bias is not None
        for i in range(len(biased.layers))
        for block in biased.blocks(i)
    )


def missing_biases(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, int]:
    """Return the number of values of each bias that a model needs under `config` and does not have."""
    present = _shapes(model)
    return {
        name: one.numel()
        for name, one in _shapes(_on_meta(model, config)).items()
        if name not in present
    }


def fill_biases(placed: PlacedModel, missing: Collection[str]) -> None:
    """Add these biases of decoder layers, as zeros. missing: their names in the model."""
    names = {module: name for name, module in placed.model.named_modules()}
    for i, layer in enumerate(placed.layers):
        linears = [
            one for name, one in layer.named_modules() if f"{names[layer]}.{name}.bias" in missing
        ]
        if linears:
            with placed.layer(i):
                for linear in cast(list[nn.Linear], linears):
                    set_tensor(linear, "bias", linear.weight.new_zeros(linear.out_features))


def _on_meta(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return cast(PreTrainedModel, stock_class(type(model))(config))


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}
