"""From a name to a model: a hub id, a local directory, or the packaged GGUF, always as safetensors."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flap.cache import digest
from flap.config import ModelConfig
from flap.errors import one_line
from flap.models.devices import free_bytes, pick_device
from flap.models.families import adapter_class
from flap.models.locate import GGUF, commit, file_state, locate
from flap.models.packaged import INSTALL
from flap.models.stream import ON_META, AnyModel, StreamedModel
from flap.models.weights import check_read


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
        which = {"files": digest(files)} if files else {"commit": commit(self.path)}
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
            raise ValueError(f"model.path={self.path}: {one_line(error, 300)}") from error
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
    path, origin = locate(config.path, cache, config.placement == "stream")
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
            f"model.path={name}: no model in a local directory or on the hub{hint} ({one_line(error, 300)})"
        ) from error
    adapter_class(hf_config)
    options = {"dtype": _dtype(dtype), "trust_remote_code": trust_remote_code}
    return Source(path, origin, hf_config, tokenizer, options, device, placement, offload)


def _dtype(name: str) -> torch.dtype | str:
    return "auto" if name == "auto" else cast(torch.dtype, getattr(torch, name))
