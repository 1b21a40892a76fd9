"""Find the GGUF file from which the dense model of a checkpoint was loaded."""

from pathlib import Path

from flap.config import one_line
from flap.models import find_gguf
from flap.storage import load_json


def source_gguf(model: str) -> Path | None:
    """Return the GGUF file of a model, or of the dense model from which it was pruned.

    If `model` is a checkpoint of flap, its flap.json names the model from which it was pruned. That
    model may be a checkpoint of flap, too. Return None if no GGUF file is found, or if pruning has
    also trimmed the vocabulary.

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
        # the GGUF file of the dense model has a tokenizer with all tokens, which does not fit a
        # model with a trimmed vocabulary
        trimmed = bool(config.get("vocabulary"))
        path = "" if trimmed else str(config.get("model", {}).get("path", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = one_line(error, 300)
        raise ValueError(f"{model}: its flap.json cannot be read ({reason})") from error
    return path
