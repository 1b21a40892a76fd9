"""Reading the config of a model, dense or pruned by this program."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from flap.modeling.register import register_configs, register_models


def read_config(path: str | Path, **options: Any) -> PreTrainedConfig:
    """Return the config of a model, as `AutoConfig.from_pretrained` does; then Auto classes know its models.

    A pruned architecture's models are registered once its config is read: to import those of all takes half a second.
    """
    register_configs()
    config = AutoConfig.from_pretrained(path, **options)
    register_models(type(config))
    return config
