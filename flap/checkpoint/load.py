"""Read a pruned checkpoint back, with this package instead of the code that travels with it."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flap.models import ON_META, StreamedModel
from flap.models.weights import check_read


def load(directory: str | Path, **options: Any) -> PreTrainedModel:
    """A pruned model, in evaluation mode; `options` are those of `from_pretrained` (dtype, device_map, …).

    Raises:
        ValueError: the directory does not exist or holds no config, or tensors of the model are in none of its files.
    """
    if not (Path(directory) / "config.json").is_file():
        raise ValueError(f"{directory}: no checkpoint here, config.json is missing")
    reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # below, by name
    options = {"dtype": "auto", "use_safetensors": True, **options, **reported}
    model, info = AutoModelForCausalLM.from_pretrained(directory, **options)
    try:
        check_read(info)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    return cast(PreTrainedModel, model.eval())


def stream(directory: Path, device: torch.device) -> StreamedModel:
    """A pruned model whose layers stay on disk. Raises: as `load`."""
    return StreamedModel(load(directory, **ON_META), directory, device, lambda: load(directory, device_map=device))
