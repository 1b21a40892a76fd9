"""Converting a pruned model in memory to the class and config that its checkpoint is loaded with."""

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

_REPLACED = (
    *NOT_SHARED, "per_layer_config", "allow_global_per_layer_attribute_access", "attention_output_bias",
    "mlp_output_bias", "head_dim",
)  # fmt: skip


def become_checkpointable(placed: PlacedModel, spare: float = inf) -> str:
    """Change class and config of the model in place, so that `save_pretrained` writes a checkpoint that can be loaded.

    If the base architecture can hold the model, it gets that class and config (the stock form); else those of
    `modeling_flap.py`, which is saved with it. Returns what is needed to load the checkpoint, and why, for the report.
    spare: how many parameters the stock form may add, as biases of zeros.
    """
    adapter = placed.adapter
    config = adapter.config
    shared = {key: value for key, value in config.to_dict().items() if key not in _REPLACED} | {
        "attn_implementation": config._attn_implementation,
        "experts_implementation": config._experts_implementation,
    }
    # without it, transformers computes it from the number of heads
    head_dim = {"head_dim": adapter.head_dim} if adapter.head_dim else {}
    computed = isinstance(
        getattr(stock_class(type(config)), "head_dim", None), property
    )  # always, for Falcon
    try:
        stock = stock_config(adapter, shared | ({} if computed else head_dim))
        missing = missing_biases(adapter.model, stock)
        if sum(missing.values()) > spare:
            raise ValueError(
                "biases of zeros, which one width for all layers would need, are beyond the target"
            )
    except ValueError as reason:
        _become_flap(adapter, shared | head_dim)
        return f"flap, or trust_remote_code=True ({reason})"
    _become(adapter, stock, stock_class(type(adapter.base)), stock_class(type(adapter.model)))
    fill_biases(placed, missing)
    return "stock transformers"


def _become_flap(adapter: ModelAdapter, shared: dict[str, Any]) -> None:
    """Give the model class and config of `modeling_flap.py`, with the widths of each layer."""
    model = adapter.model
    config_class = _pruned_class(model.config)
    base_class = _pruned_class(adapter.base)
    model_class = _pruned_class(model)
    auto_map = {
        cls._auto_class: f"modeling_flap.{cls.__name__}"
        for cls in (config_class, base_class, model_class)
    }
    added = {"auto_map": auto_map, "flap_modules": adapter.family.modules}

    shared["per_layer_config"] = {i: adapter.layer_config(i) for i in range(len(adapter.layers))}
    if adapter.config is model.config:
        config = config_class(**shared, **added)
    else:  # the language model keeps its class of config, which may hold widths by layer
        text_config = stock_class(type(adapter.config))(
            **shared, allow_global_per_layer_attribute_access=True
        )
        config = whole_config(model, config_class, text_config, **added)
    register_models(config_class)  # so that Auto classes can build the model from its config
    _become(adapter, config, base_class, model_class)
    modeling_flap.share_config(adapter.model)
    adapter.model._weight_conversions = None  # save the tensors by the names of the modules


def _pruned_class(dense: PreTrainedConfig | PreTrainedModel) -> Any:
    """Return the class of `modeling_flap.py` for a config or a model."""
    return modeling_flap.pruned_class(stock_class(type(dense)).__name__)


def _become(
    adapter: ModelAdapter, config: PreTrainedConfig, base_class: type, model_class: type
) -> None:
    model = adapter.model
    before = adapter.model.config
    decoder = set(adapter.decoder.modules())
    for module in model.modules():
        if module in decoder and hasattr(module, "config"):
            module.config = config.get_text_config()
        elif getattr(module, "config", None) is before:
            module.config = config
    adapter.base.__class__, model.__class__ = base_class, model_class
