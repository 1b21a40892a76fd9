"""Finding a model by its name: a hub id, a local directory, or the packaged GGUF. Always safetensors."""

from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer

from flap.config import ModelConfig, one_line, require
from flap.data.packaged import INSTALL
from flap.models.configs import read_config
from flap.models.devices import pick_device
from flap.models.families import find_family
from flap.models.locate import GGUF, file_state, locate
from flap.models.placement import PLACEMENTS
from flap.models.quantised import check_quantised
from flap.models.source import Source
from flap.models.weights import stored_dtype


def find_model(config: ModelConfig, cache: Path, trust_remote_code: bool, keep_dense: bool = False) -> Source:
    """Find a model by its name, read its config and tokenizer, and check what can be checked without its weights.

    keep_dense: the same weights will be opened again by this process, and may stay in memory.

    Raises:
        ValueError: there is no model of this name, its directory has no complete safetensors files, or its
            architecture is not supported.
    """
    require(config.placement in PLACEMENTS, "model.placement", config.placement, f"one of {', '.join(PLACEMENTS)}")
    path, origin = locate(config.path, cache, PLACEMENTS[config.placement].streams)
    state = tuple(map(tuple, file_state(path)))
    device = pick_device(config.device)
    located = path, origin, device, config.placement, cache / "offload", keep_dense
    return _find(config.path, config.dtype, trust_remote_code, state, located)


@lru_cache(maxsize=1)  # the runs of a sweep share one Source; `state` makes a new one if files changed
def _find(name: str, dtype: str, trust_remote_code: bool, state: object, located: tuple[Any, ...]) -> Source:
    path, origin, *placed = located
    try:
        hf_config = read_config(path, trust_remote_code=trust_remote_code)
        hf_config.dtype = hf_config.dtype or stored_dtype(path, download=True)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        hint = f"; or install the packaged copy: {INSTALL}" if name in GGUF else ""
        raise ValueError(
            f"model.path={name}: no model in a local directory or on the hub{hint} ({one_line(error, 300)})"
        ) from error
    find_family(hf_config)
    check_quantised(hf_config)
    options = {"dtype": _dtype(dtype), "trust_remote_code": trust_remote_code}
    return Source(path, origin, hf_config, tokenizer, options, *placed)


def _dtype(name: str) -> torch.dtype | str:
    return "auto" if name == "auto" else cast(torch.dtype, getattr(torch, name))
