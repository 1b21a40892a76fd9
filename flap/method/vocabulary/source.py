"""`TrimmedSource`, which trims the vocabulary of a dense model each time the model is opened."""

from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from flap.method.vocabulary.rows import cut_rows, cut_rows_of
from flap.method.vocabulary.trim import Trimmed
from flap.models import ModelSource, PlacedModel, adapt
from flap.storage import NOT_KEPT, WorkFolder, digest


class TrimmedSource(ModelSource):
    """A dense model, stored in files, whose vocabulary is trimmed each time the model is opened.

    Trimming cuts the rows of removed tokens from embedding and LM head.
    """

    def __init__(self, source: ModelSource, trimmed: Trimmed) -> None:
        self.source = source
        self.trimmed = trimmed
        self.tokenizer = trimmed.tokenizer
        self.path = source.path
        self.origin = source.origin
        self.config = source.config
        self.trust_remote_code = source.trust_remote_code
        self.device = source.device
        self.placed = source.placed

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.source.dtype

    @cached_property
    def num_bytes(self) -> int:
        """The size of the weights in bytes, without the rows of removed tokens.

        Tied tensors count once.
        """
        return int(self.skeleton().num_parameters() * self.dtype.itemsize)

    def identity(self) -> dict[str, Any]:
        """Return values that identify the dense model's weights and dtype, and the kept tokens."""
        return {**self.source.identity(), "vocabulary": digest(self.trimmed.rows_K.tolist())}

    def skeleton(self) -> PreTrainedModel:
        """Return a model with the shapes of the trimmed model.

        The weights of the returned model may be on the meta device.
        """
        model = self.source.skeleton()
        cut_rows_of(model, adapt(model), self.trimmed.rows_K)
        return model

    def open(self, work: WorkFolder = NOT_KEPT) -> PlacedModel:
        """Open the model, cut the rows of removed tokens, and return the model."""
        placed = self.source.open(work)
        cut_rows(placed, self.trimmed.rows_K)
        return placed
