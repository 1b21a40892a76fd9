"""Find the GGUF file that a checkpoint came from."""

from pathlib import Path

from flap.config import one_line
from flap.models import find_gguf
from flap.storage import load_json


def source_gguf(model: str) -> Path | None:
    """Return the GGUF file that a model came from. Return None if there is no such file.

    The file flap.json names the model that a checkpoint was pruned from. This model may also be a
    pruned checkpoint.

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
    """Return the model that a checkpoint was pruned from, or "" if their tokenizers differ."""
    label = Path(model) / "flap.json"
    if not label.is_file():
        return ""
    try:
        config = load_json(label)["provenance"].get("config", {})
        trimmed = bool(config.get("vocabulary"))  # a trimmed vocabulary has another tokenizer
        path = "" if trimmed else str(config.get("model", {}).get("path", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = one_line(error, 300)
        raise ValueError(f"{model}: its flap.json cannot be read ({reason})") from error
    return path
