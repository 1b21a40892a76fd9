"""The architecture of a model of which only the config is read: all that an estimate needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from flap.config import ModelConfig, one_line, require
from flap.models.configs import read_config
from flap.models.devices import pick_device
from flap.models.families import auto_class, find_family
from flap.models.placement import PLACEMENTS, PlacedModel
from flap.models.quantised import check_quantised
from flap.models.weights import stored_dtype


@dataclass(frozen=True)
class Architecture:
    """A model whose config is read, and nothing else. device: may be one that this machine has not."""

    config: PreTrainedConfig
    dtype: torch.dtype
    device: torch.device
    placement: str
    trust_remote_code: bool = False

    @property
    def placed(self) -> type[PlacedModel]:
        """The placement that the model would be opened at."""
        return PLACEMENTS[self.placement]

    @property
    def max_length(self) -> int | None:
        """The longest context of the model, in tokens; None if its config does not say."""
        return context_length(self.config)

    def skeleton(self) -> PreTrainedModel:
        """Return the model on the meta device, without weights."""
        return skeleton(self.config, self.trust_remote_code)


def skeleton(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Return the model of a config on the meta device, without weights."""
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    return cast(PreTrainedModel, model)


def context_length(config: PreTrainedConfig) -> int | None:
    """Return the longest context of the language model, in tokens; None if its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def loaded_dtype(config: PreTrainedConfig, name: str | torch.dtype) -> torch.dtype:
    """Return the type that weights have once they are loaded. name: `auto` is the type in the files."""
    chosen = config.dtype if name == "auto" else getattr(torch, name) if isinstance(name, str) else name
    return chosen if isinstance(chosen, torch.dtype) else torch.float32


def find_architecture(model: ModelConfig, trust_remote_code: bool) -> Architecture:
    """Return the architecture of a model: from its directory, the hub's local cache, its preset, or the hub.

    Raises:
        ValueError: there is no such config, or its architecture is not supported.
    """
    require(model.placement in PLACEMENTS, "model.placement", model.placement, f"one of {', '.join(PLACEMENTS)}")
    config = _find_config(model, trust_remote_code)
    config.dtype = config.dtype or stored_dtype(model.path, download=False)
    find_family(config)
    check_quantised(config)
    device = pick_device("auto") if model.device == "auto" else torch.device(model.device)
    return Architecture(config, loaded_dtype(config, model.dtype), device, model.placement, trust_remote_code)


def _find_config(model: ModelConfig, trust_remote_code: bool) -> PreTrainedConfig:
    """Read the config. The hub comes last, because a machine without network waits for it."""
    try:
        return read_config(model.path, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError):
        if model.architecture and not Path(model.path).is_dir():
            return AutoConfig.for_model(**model.architecture)
    try:
        return read_config(model.path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={model.path}: expected a directory with a config.json, or a model on the hub "
            f"({one_line(error, 300)})"
        ) from error
