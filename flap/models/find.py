"""Finding a model by its name: a hub id, a local directory, or a GGUF. Always safetensors."""

import logging
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from flap.config import ModelConfig, require
from flap.models.architecture import find_family
from flap.models.devices import multiplies_fast, pick_device
from flap.models.gguf_file import find_gguf
from flap.models.locate import file_state, locate, not_found
from flap.models.model_files import check_quantised, read_config
from flap.models.placement import PLACEMENTS
from flap.models.source import CheckpointSource
from flap.models.weights import stored_dtype

log = logging.getLogger(__name__)


def find_model(
    config: ModelConfig, cache: Path, trust_remote_code: bool, weights: bool = True
) -> CheckpointSource:
    """Find a model by its name, read its config, and check what can be checked without its weights.

    weights: they will be opened; else the config is enough: the weights need not be there, nor the device.

    Raises:
        ValueError: there is no model of this name, its directory has no complete safetensors files, or its
            architecture is not supported.
    """
    require(
        config.placement in PLACEMENTS,
        "model.placement",
        config.placement,
        f"one of {', '.join(PLACEMENTS)}",
    )
    placed = PLACEMENTS[config.placement]
    path = config.path
    origin = "config"
    is_path = (
        path.startswith((".", "/")) or path.count("/") > 1
    )  # a name of the hub has one slash at most
    gguf = find_gguf(path)
    known = Path(path).exists() or gguf or not is_path
    require(bool(known), "model.path", path, "a directory, and there is none of this name")
    if weights or gguf:
        path, origin = locate(path, cache, placed.streams)
    device = (
        pick_device(config.device)
        if weights or config.device == "auto"
        else torch.device(config.device)
    )
    options = {
        "origin": origin,
        "requested_dtype": config.dtype,
        "offload": cache / "offload",
        "device": device,
    }
    options |= {"placed": placed, "name": config.path}
    return _read(path, trust_remote_code, weights, tuple(map(tuple, file_state(path))), **options)


@lru_cache(
    maxsize=1
)  # the runs of a sweep share one source; `state` makes a new one if files changed
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
    """Read the config. local_first: what the hub's cache has is taken as it is, where a machine may have no network."""
    with suppress(OSError, ValueError):
        if local_first:
            return read_config(path, trust_remote_code=trust_remote_code, local_files_only=True)
    return read_config(path, trust_remote_code=trust_remote_code)
