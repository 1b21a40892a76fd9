"""Loading a pruned checkpoint with this package instead of the code that is saved with it."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from flap.models import read_model


def load(directory: str | Path, **options: Any) -> PreTrainedModel:
    """Load a pruned model, in evaluation mode. options: see `from_pretrained` (dtype, device_map, …).

    Raises:
        ValueError: the directory does not exist or holds no config, or its files lack tensors of the model.
    """
    if not (Path(directory) / "config.json").is_file():
        raise ValueError(f"{directory}: no checkpoint here, config.json is missing")
    return read_model(directory, **options)
