"""Find out whether a pruned model can be saved as a checkpoint of its base architecture.

The base architecture is the dense model's architecture in transformers. A checkpoint of the base
architecture has the stock form, and can be loaded without code of flap. The stock form is possible
only if all layers of the pruned model have the same widths, which are their numbers of heads,
neurons and experts.
"""

from collections.abc import Collection, Iterator, Sequence
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

# Boolean config keys that make an architecture add biases to its Linear modules.
BIAS_FLAGS = ("attention_bias", "mlp_bias", "use_bias", "enable_bias", "attention_out_bias", "bias")
# Config keys that describe a class or a file instead of the model.
NOT_SHARED = (
    "model_type",
    "architectures",
    "transformers_version",
    "auto_map",
    "quantization_config",
    "flap_modules",
)


def stock_config(adapter: ModelAdapter, shared: dict[str, Any]) -> PreTrainedConfig:
    """Return a config with which the base architecture has every tensor of the pruned model.

    As few bias flags (BIAS_FLAGS) as possible are true in the config. A bias flag may add biases
    that the pruned model lacks. `fill_biases` adds these biases to the pruned model as zeros.

    shared: all config values except the widths.

    Raises:
        ValueError: no config fits the pruned model. The message says why.
    """
    values = shared | _common_widths(adapter)
    reason = ""
    for flags in _subsets_by_size([name for name in BIAS_FLAGS if name in shared]):
        try:
            config = _stock_config(adapter, values | dict.fromkeys(flags, True))
            _check_places(adapter.model, config)
        # config classes raise StrictDataclassError for values that they do not allow
        except (ValueError, StrictDataclassError) as error:
            last_line = str(error).splitlines()[-1].strip()
            reason = last_line.removeprefix("ValueError: ").removesuffix(".")
        else:
            return config
    raise ValueError(reason)


def _common_widths(adapter: ModelAdapter) -> dict[str, int]:
    """Return the widths that all layers share, as a dict from config keys to numbers.

    Raises:
        ValueError: layers differ in width, or transformers' grouped kernel for experts does not
            support the number of neurons of the experts.
    """
    widths: dict[str, int] = {}
    for i in range(len(adapter.layers)):
        for name, width in adapter.widths(i).items():
            if widths.setdefault(name, width) != width:
                raise ValueError("layers differ in width")
        experts = getattr(adapter.mlp(i).output, "experts", None)
        if experts is not None and not experts_fit_kernel(experts):
            raise ValueError(
                f"experts whose width is no multiple of {KERNEL_MULTIPLE} need another kernel"
            )
    return widths


def _subsets_by_size(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in range(len(names) + 1):
        yield from combinations(names, size)


def _stock_config(adapter: ModelAdapter, values: dict[str, Any]) -> PreTrainedConfig:
    text_config = stock_class(type(adapter.config))(**values)
    return whole_config(adapter.model, stock_class(type(adapter.model.config)), text_config)


def _check_places(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Check that a model of this config has every tensor of `model`, in the same shape.

    Raises:
        ValueError: a tensor is missing, or has a different shape.
    """
    places = _shapes(_stock_model_on_meta(model, config))
    for name, shape in _shapes(model).items():
        if places.get(name) != shape:
            raise ValueError(f"{config.model_type} has no tensor {name} of shape {list(shape)}")


def whole_config(
    model: PreTrainedModel, config_class: Any, text_config: PreTrainedConfig, **changes: Any
) -> PreTrainedConfig:
    """Return a model's config with `text_config` as the config of the language model.

    For a text model, return `text_config` itself. For a vision-language model, the new config
    refers to the configs of the other parts, such as the vision tower, and does not copy them.

    config_class: the class of the new config; only used for vision-language models.
    text_config: the new config of the language model.
    changes: changed or additional values of the new config; only used for vision-language models.
    """
    config = model.config
    if config.get_text_config() is config:
        return text_config

    values = {key: value for key, value in config.to_dict().items() if key not in NOT_SHARED}
    parts = {name: getattr(config, name) for name in config.sub_configs}
    parts["text_config"] = text_config
    present = {"": config}
    for name, part in parts.items():
        if part is not None:  # the config of a missing part, such as an audio tower, is None
            present[name] = part

    # without these options, all parts would use the default implementations of attention and
    # experts
    implementations = {}
    for kind in ("attn", "experts"):
        implementations[f"{kind}_implementation"] = {
            name: getattr(part, f"_{kind}_implementation") for name, part in present.items()
        }
    options = values | parts | implementations | changes
    return cast(PreTrainedConfig, config_class(**options))


def takes_output_biases(adapter: ModelAdapter) -> bool:
    """Return whether the base architecture can have a bias in every output projection."""
    values = adapter.config.to_dict()
    values.pop("per_layer_config", None)
    for name in BIAS_FLAGS:
        if name in values:
            values[name] = True

    biased = adapt(_stock_model_on_meta(adapter.model, _stock_config(adapter, values)))
    blocks = chain.from_iterable(biased.blocks(i) for i in range(len(biased.layers)))
    return all(block.output.bias is not None for block in blocks)


def missing_biases(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, int]:
    """Return the biases that a model of this config has, but `model` lacks.

    The result is a dict from the name of each bias to its number of elements.
    """
    present = _shapes(model)
    missing = {}
    for name, shape in _shapes(_stock_model_on_meta(model, config)).items():
        if name not in present:
            missing[name] = shape.numel()
    return missing


def fill_biases(placed: PlacedModel, missing: Collection[str]) -> None:
    """Add biases of zeros to Linear modules of the decoder layers.

    missing: the names of the new biases in the model.
    """
    names = {module: name for name, module in placed.model.named_modules()}
    for i, layer in enumerate(placed.layers):
        linears = []
        for name, module in layer.named_modules():
            if f"{names[layer]}.{name}.bias" in missing:
                linears.append(cast(nn.Linear, module))
        if not linears:
            continue
        with placed.layer(i):
            for linear in linears:
                set_tensor(linear, "bias", linear.weight.new_zeros(linear.out_features))


def _stock_model_on_meta(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return cast(PreTrainedModel, stock_class(type(model))(config))


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}
