"""Load a pruned checkpoint with the classes of flap, instead of the code in the checkpoint."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from flap.models import read_model


def load(directory: str | Path, **options: Any) -> PreTrainedModel:
    """Load a pruned model in evaluation mode.

    directory: a checkpoint, or the folder of a run that contains a checkpoint.
    options: arguments of `from_pretrained`, such as dtype.

    Raises:
        ValueError: there is no checkpoint, or its files lack tensors of the model.
    """
    for folder in (Path(directory), Path(directory) / "checkpoint"):
        if (folder / "config.json").is_file():
            return read_model(folder, **options)
    raise ValueError(f"{directory}: no checkpoint here, config.json is missing")
