"""Read a pruned checkpoint back, with this package instead of the code that travels with it."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flap.models import ON_META, StreamedModel


def load(directory: str | Path, **options: Any) -> PreTrainedModel:
    """A pruned model, in evaluation mode; `options` are those of `from_pretrained` (dtype, device_map, …).

    Raises:
        ValueError: the directory does not exist or holds no config.
    """
    if not (Path(directory) / "config.json").is_file():
        raise ValueError(f"{directory}: no checkpoint here, config.json is missing")
    options = {"dtype": "auto", **options}
    model = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, **options)
    return cast(PreTrainedModel, model.eval())


def stream(directory: Path, device: torch.device) -> StreamedModel:
    """A pruned model whose layers stay on disk. Raises: as `load`."""
    return StreamedModel(load(directory, **ON_META), directory, device, lambda: load(directory, device_map=device))
