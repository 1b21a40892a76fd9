"""A dense model before it is opened: what is known of it, and how its weights are read from files."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from flap.models.devices import free_bytes
from flap.models.families import auto_class, sees_images
from flap.models.from_pretrained import read_model
from flap.models.locate import commit, file_state, not_found, processor_files
from flap.storage import NOT_KEPT, WorkFolder, digest

if TYPE_CHECKING:  # each placement opens a source
    from flap.models.placement import PlacedModel


class ModelSource(ABC):
    """A dense model before it is opened: in files (`CheckpointSource`), or loaded by the caller (`LoadedSource`)."""

    loaded: ClassVar[bool] = False  # the caller holds the weights: no file has them, and pruning changes them there
    path: str  # the directory of the files, or a hub id; empty where a loaded model names none
    origin: str  # packaged GGUF, local directory, hub or the caller; shown in the report
    config: PreTrainedConfig
    trust_remote_code: bool
    device: torch.device  # runs the model; in a dry run it may be one that this machine does not have
    placed: "type[PlacedModel]"  # the placement that the model is opened at

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            ValueError: it cannot be read.
        """

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type that the weights have once they are loaded."""

    @property
    def placement(self) -> str:
        """The placement, as `model.placement` names it."""
        return self.placed.name

    @property
    def max_length(self) -> int | None:
        """The longest context of the language model, in tokens; None if its config does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the weights once they are loaded, tied tensors once."""
        return int(sum(parameter.numel() for parameter in self.skeleton().parameters()) * self.dtype.itemsize)

    @property
    def processor_files(self) -> list[Path]:
        """The files of a vision-language model's processor, which are copied into a checkpoint as they are."""
        return processor_files(self.path) if self.path and sees_images(self.config) else []

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The identity of the weights and their type: part of the cache key of each result."""
        # the same weights may give other numbers with another version
        return self.identity() | {library: version(library) for library in ("torch", "transformers")}

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what tells these weights from others."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """Return a model with the right shapes; its weights need not be there."""

    @abstractmethod
    def open(self, work: WorkFolder = NOT_KEPT) -> "PlacedModel":
        """Return the model at its placement. work: see `PlacedModel.open`.

        Raises:
            ValueError: a file is damaged, or the files lack tensors that the architecture needs.
        """

    @abstractmethod
    def reopening(self) -> "Callable[[], PlacedModel]":
        """Return a function that opens the dense model once more, also after this one is pruned."""


@dataclass(frozen=True)
class CheckpointSource(ModelSource):
    """A model in files, of which only the config is read so far. In a dry run the other files may not be there."""

    path: str
    origin: str
    config: PreTrainedConfig
    device: torch.device
    placed: "type[PlacedModel]"
    requested_dtype: str = "auto"  # the name of a type of torch; auto: that of the files
    trust_remote_code: bool = False
    offload: Path = Path()  # the folder for weights that placement=auto offloads to disk
    keep_dense: bool = False  # the same weights will be opened again, and may stay in memory
    name: str = ""  # model.path, as the user gave it; empty: a checkpoint that this program has written

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise not_found(self.name, error) from error
        return cast(PreTrainedTokenizerBase, tokenizer)

    @property
    def dtype(self) -> torch.dtype:
        """The requested type, or the type that the config names."""
        dtype = self.config.dtype if self.requested_dtype == "auto" else getattr(torch, self.requested_dtype)
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def identity(self) -> dict[str, Any]:
        """Return the path, the type, and the state of the files or the commit on the hub."""
        files = file_state(self.path)
        revision = {"files": digest(files)} if files else {"commit": commit(self.path)}
        return {"model": self.path, "dtype": str(self.dtype), **revision}

    def skeleton(self) -> PreTrainedModel:
        return skeleton(self.config, self.trust_remote_code)

    def open(self, work: WorkFolder = NOT_KEPT) -> "PlacedModel":
        return self.placed.open(self, work)

    def reopening(self) -> "Callable[[], PlacedModel]":
        return self.open

    @cached_property
    def kept_dense(self) -> PreTrainedModel | None:
        """The dense model, kept in memory to be used again; None if nobody will, or if there is too little room.

        Needed is three times its size: for the dense model, a pruned copy, and the working memory of a run.
        """
        return self.on_device() if self.keep_dense and 3 * self.num_bytes <= free_bytes(self.device) else None

    def on_device(self) -> PreTrainedModel:
        """Load the whole model on its device, without a copy of it on the host."""
        return self.read(**({} if self.device.type == "cpu" else {"device_map": {"": self.device}}))

    def read(self, **placing: Any) -> PreTrainedModel:
        """Load the weights. placing: options of transformers' `from_pretrained` that say where to."""
        options = {"dtype": self.requested_dtype, "trust_remote_code": self.trust_remote_code}
        try:
            return read_model(self.path, **options, **placing)
        except ValueError as error:
            raise ValueError(f"model.path={error}" if self.name else str(error)) from error


def skeleton(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Return the model of a config on the meta device, without weights."""
    with torch.device("meta"):
        return cast(PreTrainedModel, auto_class(config).from_config(config, trust_remote_code=trust_remote_code))
