"""Find the GGUF file from which the model of a checkpoint was loaded before pruning."""

from pathlib import Path

from flap.config import one_line
from flap.models import find_gguf
from flap.storage import load_json


def source_gguf(model: str) -> Path | None:
    """Return the GGUF file from which a model was first loaded, or None if there is no such file.

    The flap.json of a checkpoint names the model that was pruned. If this model is itself a pruned
    checkpoint, its flap.json is read as well.

    model: a hub id or a directory.

    Raises:
        ValueError: a flap.json cannot be read.
    """
    visited: set[str] = set()
    while model and model not in visited:
        file = find_gguf(model)
        if file is not None and file.is_file():
            return file
        visited.add(model)
        model = _pruned_from(model)
    return None


def _pruned_from(model: str) -> str:
    """Return the hub id or the directory of the model that was pruned to make a checkpoint.

    Return "" if `model` is not a checkpoint of flap, or if pruning has also trimmed the vocabulary.
    """
    label = Path(model) / "flap.json"
    if not label.is_file():
        return ""
    try:
        config = load_json(label)["provenance"].get("config", {})
        trimmed = bool(config.get("vocabulary"))  # the GGUF has the untrimmed tokenizer
        path = "" if trimmed else str(config.get("model", {}).get("path", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = one_line(error, 300)
        raise ValueError(f"{model}: its flap.json cannot be read ({reason})") from error
    return path
