"""A model before it is opened: found by its name and not loaded yet, or given by the caller."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.base import HfQuantizer

from flap.config import ModelConfig
from flap.models.architecture import context_length, loaded_dtype, skeleton
from flap.models.devices import free_bytes
from flap.models.families import sees_images
from flap.models.locate import commit, file_state, processor_files
from flap.models.offload import is_spread, running_device, weights_digest
from flap.models.placement import PLACEMENTS, PlacedModel, Resident, Spread
from flap.models.placement.resident import copy_sharing_tensors
from flap.models.products import compute_dtype
from flap.models.quantised import check_plain, dequantiser
from flap.models.read import read_model
from flap.storage import NOT_KEPT, WorkFolder, digest


@dataclass(frozen=True)
class Source:
    """A model whose config and tokenizer are read and whose weights are not loaded yet."""

    path: str
    origin: str  # packaged GGUF, local directory or hub; shown in the report
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    options: dict[str, Any]  # dtype, trust_remote_code: passed on to from_pretrained
    device: torch.device
    placement: str
    offload: Path  # the folder for weights that placement=auto offloads to disk
    keep_dense: bool = False  # the same weights will be opened again, and may stay in memory

    @property
    def max_length(self) -> int | None:
        """The longest context of the model, in tokens; None if its config does not say."""
        return context_length(self.config)

    def skeleton(self) -> PreTrainedModel:
        """Return the model on the meta device, without weights: prices and budget can be checked before loading."""
        return skeleton(self.config, self.options["trust_remote_code"])

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights have once they are loaded."""
        return loaded_dtype(self.config, self.options["dtype"])

    @property
    def computed_in(self) -> torch.dtype:
        """The type of the matrix products: that of the weights, if the config names it; else a fast one."""
        return compute_dtype(self.dtype, self.device) if self.options["dtype"] == "auto" else self.dtype

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The identity of the weights, their type and that of products: part of all cache keys of what they give."""
        files = file_state(self.path)
        revision = {"files": digest(files)} if files else {"commit": commit(self.path)}
        dtype = self.config.dtype if self.options["dtype"] == "auto" else self.options["dtype"]
        computed = {} if self.computed_in == self.dtype else {"computed_in": str(self.computed_in)}
        return {"model": self.path, "dtype": str(dtype), **computed, **revision, **_libraries()}

    @property
    def dequantiser(self) -> HfQuantizer | None:
        """What makes plain tensors of those in the files; None where they are plain."""
        return dequantiser(self.config)

    @property
    def beside(self) -> list[Path]:
        """The files that travel to a checkpoint as they are: those of the processor of a vision-language model."""
        return processor_files(self.path) if sees_images(self.config) else []

    @property
    def placed(self) -> type[PlacedModel]:
        """The placement that the model is opened at."""
        return PLACEMENTS[self.placement]

    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        """Return the model at its placement. work: see `PlacedModel.open`.

        Raises:
            ValueError: a file is damaged, or the files lack tensors that the architecture needs.
        """
        return self.placed.open(self, work)

    def reopening(self) -> Callable[[], PlacedModel]:
        """Return what opens the dense model once more."""
        return self.open

    @cached_property
    def kept_dense(self) -> PreTrainedModel | None:
        """The dense model, kept in memory to be used again; None if nobody will, or if there is too little room.

        Needed is three times its size: for the dense model, a pruned copy, and the working memory of a run.
        """
        return self.on_device() if self.keep_dense and 3 * self.num_bytes <= free_bytes(self.device) else None

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the weights once they are loaded, tied tensors once."""
        return int(sum(parameter.numel() for parameter in self.skeleton().parameters()) * self.dtype.itemsize)

    def on_device(self) -> PreTrainedModel:
        """Load the whole model on its device, without a copy of it on the host."""
        return self.read(**({} if self.device.type == "cpu" else {"device_map": {"": self.device}}))

    def read(self, **placing: Any) -> PreTrainedModel:
        """Load the weights. placing: options of transformers' `from_pretrained` that say where to."""
        try:
            return read_model(self.path, **self.options, **placing)
        except ValueError as error:
            raise ValueError(f"model.path={error}") from error


@dataclass(frozen=True)
class Given:
    """A model that the caller has loaded, with the interface of `Source`.

    Raises:
        ValueError: its weights are packed, as 4-bit ones are.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: str = "loaded by the caller"

    def __post_init__(self) -> None:
        """Check that the weights are plain."""
        check_plain(self.model)

    @property
    def described(self) -> ModelConfig:
        """The section `model` of a run's config: what this model is. Where it names no origin, `path` is empty."""
        dtype = str(self.dtype).removeprefix("torch.")
        name = Path(self.path).name or type(self.model).__name__
        return ModelConfig(name, self.path, dtype, self.device.type, placement=self.placement)

    @property
    def path(self) -> str:
        """The directory or hub id that the model says it was read from; empty where it says none."""
        return str(getattr(self.config, "_name_or_path", ""))

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the model."""
        return self.model.config

    @property
    def max_length(self) -> int | None:
        """As `Source.max_length`."""
        return context_length(self.config)

    @property
    def device(self) -> torch.device:
        """The device that runs the model."""
        return running_device(self.model)

    @property
    def placement(self) -> str:
        """Where the weights are, as `model.placement` names it."""
        return "auto" if is_spread(self.model) else "device"

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return cast(torch.dtype, self.model.dtype)

    @property
    def computed_in(self) -> torch.dtype:
        """As `Source.computed_in`."""
        return compute_dtype(self.dtype, self.device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, tied tensors once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The identity of the model as it was given: class, config, and digests of weights and tokenizer.

        The caller may have changed the weights since they were read, so that their path says nothing. Reading them
        takes less time than one pass of calibration, and what is stored is found again for equal weights alone.
        """
        config, backend = (
            digest(self.config.to_json_string(use_diff=False)),
            getattr(self.tokenizer, "backend_tokenizer", None),
        )
        computed = {} if self.computed_in == self.dtype else {"computed_in": str(self.computed_in)}
        return {
            "model": type(self.model).__name__,
            "config": config,
            "weights": weights_digest(self.model),
            "tokenizer": digest(backend.to_str() if backend else sorted(self.tokenizer.get_vocab().items())),
            **computed,
            **_libraries(),
        }

    @property
    def beside(self) -> list[Path]:
        """As `Source.beside`."""
        return processor_files(self.path) if self.path and sees_images(self.config) else []

    @property
    def placed(self) -> type[Resident] | type[Spread]:
        """The placement that the model is in, whatever the config's says."""
        return Spread if self.placement == "auto" else Resident

    def skeleton(self) -> PreTrainedModel:
        """Return the model itself."""
        return self.model

    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        """Return the model itself, in evaluation mode."""
        return self.placed(self.model.eval())

    def reopening(self) -> Callable[[], PlacedModel]:
        """Return what gives the model of now once more: a copy that shares its tensors; pruning makes others."""
        return partial(Resident, copy_sharing_tensors(self.model))


def _libraries() -> dict[str, str]:
    """Return the versions of the libraries that the same weights may compute other numbers with."""
    return {library: version(library) for library in ("torch", "transformers")}
