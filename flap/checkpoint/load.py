"""Read a pruned checkpoint back, with this package instead of the code that travels with it."""

from pathlib import Path
from typing import Any, cast

from transformers import AutoModelForCausalLM, PreTrainedModel


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
