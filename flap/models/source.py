"""Describe a run's dense (unpruned) model before the weights of the model are opened."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from flap.models.architecture import sees_images
from flap.models.config_files import read_tokenizer
from flap.models.locate import commit, file_state, not_found
from flap.models.model_files import ModelFiles
from flap.models.placed_model import PlacedModel
from flap.models.weights import QUIET
from flap.storage import NOT_KEPT, WorkFolder, digest

# The names of the files of a vision-language model's processor.
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


class ModelSource(ABC):
    """A dense (unpruned) model before its weights are opened.

    The model is in files (`CheckpointSource`), or the caller has loaded it (`LoadedSource`).
    """

    # Whether the caller has loaded the weights. If so, pruning changes the caller's model, and the
    # dense weights may exist only in memory.
    loaded: ClassVar[bool] = False
    path: str  # a directory or hub id; empty if a loaded model has no name or path
    origin: str  # where the model comes from: a GGUF, a local directory, the hub or the caller
    config: PreTrainedConfig
    trust_remote_code: bool
    device: torch.device  # the device that runs the model
    placed: type[PlacedModel]  # the class for the model's placement (option `model.placement`)
    # the tokenizer of the model; access raises a ValueError if the tokenizer cannot be read
    tokenizer: PreTrainedTokenizerBase

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the weights after loading."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """The number of bytes of the weights after loading. Tied tensors are counted once."""

    @property
    def placement(self) -> str:
        return self.placed.name

    @property
    def max_length(self) -> int | None:
        """The context length of the language model in tokens; None if its config has none."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def processor_files(self) -> list[Path]:
        """The files of a vision-language model's processor, which are copied to checkpoints."""
        if not (self.path and sees_images(self.config)):
            return []
        files = (cached_file(self.path, name, **QUIET) for name in PROCESSOR)
        return [Path(file) for file in files if file]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The identity of the model, and the versions of libraries: entries of every cache key."""
        # Include the versions of torch and transformers, because the same weights may give
        # different results with other versions.
        versions = {library: version(library) for library in ("torch", "transformers")}
        return self.identity() | versions

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return values that identify the model's weights and dtype."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """Return a model with the shapes of the dense model, with or without weights."""

    @abstractmethod
    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        """Open the model at its placement, which defines where the weights are.

        work: the working directory for data that is too large for memory, from which an interrupted
            run resumes.

        Raises:
            ValueError: a file is damaged, or the files lack tensors that the architecture needs.
        """

    def reopening(self) -> Callable[[], PlacedModel]:
        """Return a function that opens the dense model again, even after the model was pruned."""
        return self.open


@dataclass(frozen=True)
class CheckpointSource(ModelFiles, ModelSource):
    """A model in files, whose weights are not read before the model is opened."""

    origin: str = field(kw_only=True)
    placed: type[PlacedModel] = field(kw_only=True)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return read_tokenizer(self.path, self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise not_found(self.name, error, "no tokenizer") from error

    def identity(self) -> dict[str, Any]:
        """Return the path, the dtype, and the state of the local files or the commit on the hub."""
        identity = {"model": self.path, "dtype": str(self.dtype)}
        files = file_state(self.path)
        if files:
            return identity | {"files": digest(files)}
        return identity | {"commit": commit(self.path)}

    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        return self.placed.open(self, work)
