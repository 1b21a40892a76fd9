"""Loading a pruned checkpoint with this package instead of the code that is saved with it."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from flap.models import read_model
from flap.storage import read_json


def load(directory: str | Path, **options: Any) -> PreTrainedModel:
    """Load a pruned model, in evaluation mode, from its checkpoint or from the folder of the run that has saved it.

    options: see `from_pretrained` (dtype, device_map, …).

    Raises:
        ValueError: the directory does not exist or holds no config, or its files lack tensors of the model.
    """
    run = Path(directory)
    places = (run, run / "checkpoint", Path(read_json(run / "report.json").get("checkpoint") or run))
    checkpoint = next((place for place in places if (place / "config.json").is_file()), None)
    if checkpoint is None:
        raise ValueError(f"{directory}: no checkpoint here, config.json is missing")
    return read_model(checkpoint, **options)
