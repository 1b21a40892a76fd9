"""A dense model before it is opened, and what is known of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from flap.models.architecture import sees_images
from flap.models.locate import commit, file_state, not_found
from flap.models.model_files import ModelFiles
from flap.models.placement.base import PlacedModel
from flap.models.weights import QUIET
from flap.storage import NOT_KEPT, WorkFolder, digest

PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


class ModelSource(ABC):
    """A dense model before it is opened: in files (`CheckpointSource`), or loaded by the caller (`LoadedSource`)."""

    loaded: ClassVar[bool] = (
        False  # the caller holds the weights: no file has them, and pruning changes them there
    )
    path: str  # the directory of the files, or a hub id; empty where a loaded model names none
    origin: str  # a GGUF, local directory, hub or the caller; shown in the report
    config: PreTrainedConfig
    trust_remote_code: bool
    device: torch.device  # runs the model
    placed: type[PlacedModel]  # the placement that the model is opened at
    tokenizer: PreTrainedTokenizerBase  # a ValueError where it cannot be read

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type that the weights have once they are loaded."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of the weights once they are loaded, tied tensors once."""

    @property
    def placement(self) -> str:
        return self.placed.name

    @property
    def max_length(self) -> int | None:
        """The longest context of the language model, in tokens; None if its config does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def processor_files(self) -> list[Path]:
        """The files of a vision-language model's processor, which are copied into a checkpoint as they are."""
        if not (self.path and sees_images(self.config)):
            return []
        files = (cached_file(self.path, name, **QUIET) for name in PROCESSOR)
        return [Path(file) for file in files if file]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The identity of the weights and their type: part of the cache key of each result."""
        # the same weights may give other numbers with another version
        return self.identity() | {
            library: version(library) for library in ("torch", "transformers")
        }

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what tells these weights from others."""

    @abstractmethod
    def skeleton(self) -> PreTrainedModel:
        """Return a model with the right shapes; its weights need not be there."""

    @abstractmethod
    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        """Return the model at its placement. work: see `PlacedModel.open`.

        Raises:
            ValueError: a file is damaged, or the files lack tensors that the architecture needs.
        """

    def reopening(self) -> Callable[[], PlacedModel]:
        """Return a function that opens the dense model once more, also after this one is pruned."""
        return self.open


@dataclass(frozen=True)
class CheckpointSource(ModelFiles, ModelSource):
    """A model in files, of which only the config is read so far."""

    origin: str = field(kw_only=True)
    placed: type[PlacedModel] = field(kw_only=True)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.path, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise not_found(self.name, error, "no tokenizer") from error
        return cast(PreTrainedTokenizerBase, tokenizer)

    def identity(self) -> dict[str, Any]:
        """Return the path, the type, and the state of the files or the commit on the hub."""
        files = file_state(self.path)
        revision = {"files": digest(files)} if files else {"commit": commit(self.path)}
        return {"model": self.path, "dtype": str(self.dtype), **revision}

    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        return self.placed.open(self, work)
