"""Find a model by its name, which is a hub id, a local directory or the path of a GGUF file."""

import logging
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from flap.config import ModelConfig, require, shown
from flap.data.hub import offline_without_hub
from flap.models.architecture import find_family
from flap.models.config_files import read_config
from flap.models.devices import multiplies_fast, pick_device
from flap.models.gguf_file import find_gguf
from flap.models.locate import file_state, locate, not_found
from flap.models.model_files import check_quantised
from flap.models.placement import PLACEMENTS
from flap.models.source import CheckpointSource
from flap.models.weights import stored_dtype

log = logging.getLogger(__name__)


def find_model(
    config: ModelConfig, cache: Path, trust_remote_code: bool, weights: bool = True
) -> CheckpointSource:
    """Find a model by its name, read its config, and make all checks that need no weights.

    weights: whether the weights will be opened. If false, weights and device need not exist.

    Raises:
        ValueError: there is no model of this name, its weights are incomplete, its architecture or
            quantisation is not supported, or `placement` or `device` is invalid.
    """
    placements = f"one of {', '.join(PLACEMENTS)}"
    require(config.placement in PLACEMENTS, "model.placement", config.placement, placements)
    placed = PLACEMENTS[config.placement]
    gguf = find_gguf(config.path)
    exists = _exists(config.path) or gguf is not None
    # A name with two or more slashes is a path, because a hub id has at most one slash.
    is_path = config.path.startswith((".", "/")) or config.path.count("/") > 1
    there_is_none = "a directory, and there is no directory with this name"
    require(exists or not is_path, "model.path", config.path, there_is_none)

    must_exist = weights or config.device == "auto"
    device = pick_device(config.device) if must_exist else torch.device(config.device)
    with nullcontext() if exists else offline_without_hub():
        path = config.path
        origin = "config"
        if weights or gguf:
            path, origin = locate(path, cache, placed.streams, config.tie_copied_head)
        return _read(
            path,
            trust_remote_code,
            weights,
            tuple(map(tuple, file_state(path))),
            origin=origin,
            requested_dtype=config.dtype,
            offload=cache / "offload",
            device=device,
            placed=placed,
            name=config.path,
        )


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"model.path={shown(path)}: cannot be looked up ({reason})") from error


# The result is cached, so that the runs of a sweep share one `CheckpointSource`. The argument
# `state` makes sure that the config is read again if a file of the model has changed.
@lru_cache(maxsize=1)
def _read(
    path: str, trust_remote_code: bool, weights: bool, state: object, **options: Any
) -> CheckpointSource:
    try:
        config = _config(path, trust_remote_code, local_first=not weights)
        config.dtype = config.dtype or stored_dtype(path, download=weights)
    except (OSError, ValueError) as error:
        raise not_found(options["name"], error) from error
    find_family(config)
    check_quantised(config)
    source = CheckpointSource(path, config, trust_remote_code=trust_remote_code, **options)
    if not multiplies_fast(source.dtype, source.device):
        log.warning(
            "this processor is slow in %s: model.dtype=float32 may be several times as fast",
            source.dtype,
        )
    return source


def _config(path: str, trust_remote_code: bool, local_first: bool) -> PreTrainedConfig:
    """Read the config. If `local_first`, first try the hub's local cache, without the network."""
    with suppress(OSError, ValueError):
        if local_first:
            return read_config(path, trust_remote_code=trust_remote_code, local_files_only=True)
    return read_config(path, trust_remote_code=trust_remote_code)
