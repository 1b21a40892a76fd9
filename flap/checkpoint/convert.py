"""Give a pruned model in memory the class and config that its checkpoint reloads as."""

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from flap.checkpoint import modeling_flap
from flap.checkpoint.stock import fill_biases, stock_class, stock_config
from flap.models import ModelAdapter


@dataclass(frozen=True)
class Form:
    """What a checkpoint is to those who load it."""

    loads_with: str = "stock transformers"
    zero_biases: list[str] = field(default_factory=list)  # added because the base architecture has them


def become_checkpointable(adapter: ModelAdapter) -> Form:
    """Change class and config of the model in place, so that its own `save_pretrained` writes what loads again.

    Where the base architecture can hold it, it becomes (or stays) that; else the class whose code travels along.
    """
    config = adapter.model.config
    shared = {key: value for key, value in config.to_dict().items() if key not in _REPLACED}
    kernels = {
        "attn_implementation": config._attn_implementation,
        "experts_implementation": config._experts_implementation,
    }
    shared |= kernels | {"head_dim": adapter.head_dim}  # else transformers derives it from the number of heads
    try:
        stock = stock_config(adapter, shared)
    except ValueError as reason:
        _become_flap(adapter, shared)
        return Form(f"flap, or trust_remote_code=True ({reason})")
    _become(adapter, stock, stock_class(type(adapter.model.base_model)), stock_class(type(adapter.model)))
    return Form(zero_biases=fill_biases(adapter.model, stock))


def _become_flap(adapter: ModelAdapter, shared: dict[str, Any]) -> None:
    architecture = stock_class(type(adapter.model)).__name__.removesuffix("ForCausalLM")
    names = {auto: f"Flap{architecture}{kind}" for auto, kind in modeling_flap.AUTO_CLASSES.items()}
    config_class, model_class, causal_class = (getattr(modeling_flap, name) for name in names.values())
    config = config_class(
        **shared,
        auto_map={auto: f"modeling_flap.{name}" for auto, name in names.items()},
        per_layer_config={i: adapter.layer_config(i) for i in range(len(adapter.layers))},
    )
    _become(adapter, config, model_class, causal_class)
    modeling_flap.share_config(adapter.model)
    adapter.model._weight_conversions = None  # no other layout: tensors are saved under the modules' names


def _become(adapter: ModelAdapter, config: PreTrainedConfig, model_class: type, causal_class: type) -> None:
    model = adapter.model
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = config
    model.base_model.__class__, model.__class__ = model_class, causal_class


_REPLACED = (
    "model_type",
    "architectures",
    "transformers_version",
    "auto_map",
    "per_layer_config",
    "attention_output_bias",
    "mlp_output_bias",
    "quantization_config",
    "head_dim",
)
