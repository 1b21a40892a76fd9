"""Finding a model by its name: a hub id, a local directory, or the packaged GGUF. Always safetensors."""

from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, AutoTokenizer

from flap.config import ModelConfig, one_line, require
from flap.data.packaged import INSTALL
from flap.models.devices import pick_device
from flap.models.families import find_family
from flap.models.locate import GGUF, file_state, locate
from flap.models.placement import PLACEMENTS
from flap.models.quantised import check_quantised
from flap.models.source import Source
from flap.models.weights import stored_dtype


def find_model(config: ModelConfig, cache: Path, trust_remote_code: bool) -> Source:
    """Find a model by its name, read its config and tokenizer, and check what can be checked without its weights.

    Raises:
        ValueError: there is no model of this name, its directory has no complete safetensors files, or its
            architecture is not supported.
    """
    require(config.placement in PLACEMENTS, "model.placement", config.placement, f"one of {', '.join(PLACEMENTS)}")
    path, origin = locate(config.path, cache, PLACEMENTS[config.placement].on_disk)
    state = tuple(map(tuple, file_state(path)))
    device = pick_device(config.device)
    return _find(
        config.path, path, origin, config.dtype, device, config.placement, trust_remote_code, cache / "offload", state
    )


@lru_cache(maxsize=1)  # the runs of a sweep share one Source; `state` makes a new one if files changed
def _find(
    name: str,
    path: str,
    origin: str,
    dtype: str,
    device: torch.device,
    placement: str,
    trust_remote_code: bool,
    offload: Path,
    state: object,
) -> Source:
    try:
        hf_config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
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
    return Source(path, origin, hf_config, tokenizer, options, device, placement, offload)


def _dtype(name: str) -> torch.dtype | str:
    return "auto" if name == "auto" else cast(torch.dtype, getattr(torch, name))
