"""Give a pruned model in memory the class and config that its checkpoint reloads as."""

from flap.checkpoint import modeling_flap
from flap.models import ModelAdapter


def become_checkpointable(adapter: ModelAdapter) -> None:
    """Change class and config of the model in place, so that its own `save_pretrained` writes what loads again."""
    model, config = adapter.model, adapter.model.config
    architecture = type(model).__name__.removeprefix("Flap").removesuffix("ForCausalLM")
    names = {auto: f"Flap{architecture}{kind}" for auto, kind in modeling_flap.AUTO_CLASSES.items()}
    config_class, model_class, causal_class = (getattr(modeling_flap, name) for name in names.values())
    new = config_class(
        **{key: value for key, value in config.to_dict().items() if key not in _REPLACED},
        attn_implementation=config._attn_implementation,
        head_dim=adapter.head_dim,  # else transformers derives it from the number of heads
        auto_map={auto: f"modeling_flap.{name}" for auto, name in names.items()},
        per_layer_config={i: adapter.layer_config(i) for i in range(len(adapter.layers))},
    )
    for module in model.modules():
        if getattr(module, "config", None) is config:
            module.config = new
    modeling_flap.share_config(model)
    model._weight_conversions = None  # tensors are saved under the modules' names, not those of an older layout
    model.base_model.__class__, model.__class__ = model_class, causal_class


_REPLACED = (
    "model_type",
    "architectures",
    "transformers_version",
    "auto_map",
    "per_layer_config",
    "quantization_config",
    "head_dim",
)
