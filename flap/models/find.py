"""Finding a model by its name: a hub id, a local directory, or the packaged GGUF. Always safetensors."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from flap.config import ModelConfig, require
from flap.models.devices import multiplies_fast, pick_device
from flap.models.families import find_family
from flap.models.from_pretrained import check_quantised, read_config
from flap.models.locate import file_state, locate, not_found, packaged_gguf
from flap.models.placement import PLACEMENTS, PlacedModel
from flap.models.source import CheckpointSource
from flap.models.weights import stored_dtype

log = logging.getLogger(__name__)


def find_model(config: ModelConfig, cache: Path, trust_remote_code: bool, keep_dense: bool = False) -> CheckpointSource:
    """Find a model by its name, read its config, and check what can be checked without its weights.

    keep_dense: the same weights will be opened again by this process, and may stay in memory.

    Raises:
        ValueError: there is no model of this name, its directory has no complete safetensors files, or its
            architecture is not supported.
    """
    placed = _placement(config)
    path, origin = locate(config.path, cache, placed.streams)
    options = {"origin": origin, "requested_dtype": config.dtype, "offload": cache / "offload"}
    options |= {"device": pick_device(config.device), "placed": placed, "name": config.path, "keep_dense": keep_dense}
    return _read(path, trust_remote_code, tuple(map(tuple, file_state(path))), **options)


@lru_cache(maxsize=1)  # the runs of a sweep share one source; `state` makes a new one if files changed
def _read(path: str, trust_remote_code: bool, state: object, **options: Any) -> CheckpointSource:
    try:
        config = read_config(path, trust_remote_code=trust_remote_code)
        config.dtype = config.dtype or stored_dtype(path, download=True)
    except (OSError, ValueError) as error:
        raise not_found(options["name"], error) from error
    _check_supported(config)
    source = CheckpointSource(path, config, trust_remote_code=trust_remote_code, **options)
    if not multiplies_fast(source.dtype, source.device):
        log.warning("this processor is slow in %s: model.dtype=float32 may be several times as fast", source.dtype)
    return source


def find_by_config(config: ModelConfig, cache: Path, trust_remote_code: bool) -> CheckpointSource:
    """Return a model of which the config is enough: packaged, in a directory, in the hub's local cache, or on the hub.

    Raises:
        ValueError: there is no such config, or its architecture is not supported.
    """
    placed, path = _placement(config), config.path
    if packaged_gguf(path):
        path, _ = locate(path, cache, placed.streams)
    of_model = _any_config(path, trust_remote_code)
    of_model.dtype = of_model.dtype or stored_dtype(path, download=False)
    _check_supported(of_model)
    device = pick_device("auto") if config.device == "auto" else torch.device(config.device)
    return CheckpointSource(
        path, of_model, device, config.dtype, trust_remote_code, name=path, origin="config", placed=placed
    )


def _placement(config: ModelConfig) -> type[PlacedModel]:
    require(config.placement in PLACEMENTS, "model.placement", config.placement, f"one of {', '.join(PLACEMENTS)}")
    return PLACEMENTS[config.placement]


def _check_supported(config: PreTrainedConfig) -> None:
    find_family(config)
    check_quantised(config)


def _any_config(path: str, trust_remote_code: bool) -> PreTrainedConfig:
    """Read the config. The hub comes last, because a machine without network waits for it."""
    for local_files_only in (True, False):
        try:
            return read_config(path, trust_remote_code=trust_remote_code, local_files_only=local_files_only)
        except (OSError, ValueError) as error:
            failed = error
    raise not_found(path, failed) from failed
