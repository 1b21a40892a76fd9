"""Loading a pruned checkpoint with this package instead of the code that is saved with it."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from flap.models import read_model


def load(directory: str | Path, **options: Any) -> PreTrainedModel:
    """Load a pruned model in evaluation mode, also from a run's folder. options: see `from_pretrained` (dtype, …).

    Raises:
        ValueError: the directory does not exist or holds no config, or its files lack tensors of the model.
    """
    for place in (Path(directory), Path(directory) / "checkpoint"):
        if (place / "config.json").is_file():
            return read_model(place, **options)
    raise ValueError(f"{directory}: no checkpoint here, config.json is missing")
