"""Give a pruned model the class and the config with which its checkpoint can be loaded."""

from math import inf
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from flap.checkpoint.stock import (
    NOT_SHARED,
    fill_biases,
    missing_biases,
    stock_config,
    whole_config,
)
from flap.modeling import modeling_flap
from flap.modeling.register import register_models
from flap.models import ModelAdapter, PlacedModel, stock_class

# Config keys that are not copied from the model's current config into its new config. This module
# sets some of these keys itself. The other keys describe a class or a file instead of the model.
_REPLACED = (
    *NOT_SHARED,
    "per_layer_config",
    "allow_global_per_layer_attribute_access",
    "attention_output_bias",
    "mlp_output_bias",
    "head_dim",
)


def become_checkpointable(placed: PlacedModel, spare: float = inf) -> str:
    """Change the class and the config of a model in place, so that it can be saved and loaded.

    If the dense model's architecture in transformers can represent the pruned model, the model gets
    the class and the config of this architecture (the stock form). Otherwise, it gets a class
    and a config of `modeling_flap.py`, which is later saved with the weights.

    spare: the maximum number of parameters that the stock form may add as biases whose values are
        all zero.

    Returns: a text that says what is needed to load the checkpoint. If transformers alone is not
        sufficient, the text also says why.
    """
    adapter = placed.adapter
    shared = _values_kept_by_pruning(adapter.config)
    # without this key, transformers would compute the head size from the pruned number of heads
    head_dim = {"head_dim": adapter.head_dim} if adapter.head_dim else {}
    base_config_class = stock_class(type(adapter.config))
    # do not set head_dim in Falcon's config, which always computes it from the number of heads
    is_computed = isinstance(getattr(base_config_class, "head_dim", None), property)

    try:
        config = stock_config(adapter, shared if is_computed else shared | head_dim)
        missing = missing_biases(adapter.model, config)
        if sum(missing.values()) > spare:
            raise ValueError(
                "biases of zeros, which one width for all layers would need, are beyond the target"
            )
    except ValueError as reason:
        _become_flap(adapter, shared | head_dim)
        return f"flap, or trust_remote_code=True ({reason})"

    base_class = stock_class(type(adapter.base))
    _set_classes_and_config(adapter, config, base_class, stock_class(type(adapter.model)))
    fill_biases(placed, missing)
    return "stock transformers"


def _values_kept_by_pruning(config: PreTrainedConfig) -> dict[str, Any]:
    values = {key: value for key, value in config.to_dict().items() if key not in _REPLACED}
    values["attn_implementation"] = config._attn_implementation
    values["experts_implementation"] = config._experts_implementation
    return values


def _become_flap(adapter: ModelAdapter, shared: dict[str, Any]) -> None:
    """Give a model a class and a config of `modeling_flap.py`.

    The config has the numbers of heads, neurons and experts of each layer.
    """
    model = adapter.model
    config_class = _pruned_class(model.config)
    base_class = _pruned_class(adapter.base)
    model_class = _pruned_class(model)
    auto_map = {}
    for cls in (config_class, base_class, model_class):
        auto_map[cls._auto_class] = f"modeling_flap.{cls.__name__}"
    added = {"auto_map": auto_map, "flap_modules": adapter.family.modules}

    shared["per_layer_config"] = {i: adapter.layer_config(i) for i in range(len(adapter.layers))}
    if adapter.config is model.config:
        config = config_class(**shared, **added)
    else:
        # In a vision-language model, only the config of the whole model gets a class of flap. The
        # config of the language model keeps its class of transformers.
        text_config_class = stock_class(type(adapter.config))
        text_config = text_config_class(**shared, allow_global_per_layer_attribute_access=True)
        config = whole_config(model, config_class, text_config, **added)

    register_models(config_class)  # so that the Auto classes find the model class
    _set_classes_and_config(adapter, config, base_class, model_class)
    modeling_flap.share_config(model)
    # without weight conversions, `save_pretrained` keeps the names that tensors have in the model
    model._weight_conversions = None


def _pruned_class(dense: PreTrainedConfig | PreTrainedModel) -> Any:
    return modeling_flap.pruned_class(stock_class(type(dense)).__name__)


def _set_classes_and_config(
    adapter: ModelAdapter, config: PreTrainedConfig, base_class: type, model_class: type
) -> None:
    model = adapter.model
    config_before = model.config
    decoder = set(adapter.decoder.modules())
    for module in model.modules():
        if module in decoder and hasattr(module, "config"):
            module.config = config.get_text_config()
        elif getattr(module, "config", None) is config_before:
            module.config = config
    adapter.base.__class__ = base_class
    model.__class__ = model_class
