"""The base class of measurements over texts, cut into windows of a fixed length.

Legend: N windows · T tokens in each window.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.config import require
from flap.data import (
    evaluation_windows,
    read_text,
    retokenised,
    text_bytes,
    tokens_sha256,
    uses_bos,
)
from flap.evaluation.base import Evaluator, Task


@dataclass(frozen=True)
class OnTexts(Evaluator, ABC):
    """A measurement of texts, one task for each text and window length; it needs no more than one layer in memory."""

    section: ClassVar[str]  # of the config, for error messages

    datasets: list[str]  # names of texts, or local files
    seq_len: Any = (
        128  # tokens in a window, 2 or more, or a list of such; it is part of the numbers' names
    )
    max_tokens: int | None = 16384  # tokens of each text, at least one window; None: all
    batch_size: int = 8  # windows at a time; 1 or more
    bos: str = "auto"  # windows begin with the BOS token: "true", "false"; "auto": where the tokenizer puts one there

    def __post_init__(self) -> None:
        require(bool(self.datasets), f"{self.section}.datasets", "[]", "at least one text")
        names = all(isinstance(dataset, str) for dataset in self.datasets)
        require(
            names,
            f"{self.section}.datasets",
            self.datasets,
            "names of texts, or files with a column 'text'",
        )
        valid = bool(self.windows) and all(
            type(length) is int and length >= 2 for length in self.windows
        )
        require(
            valid, f"{self.section}.seq_len", self.seq_len, "a whole number >= 2, or a list of such"
        )
        for name, minimum in (("max_tokens", max(self.windows)), ("batch_size", 1)):
            value = getattr(self, name)
            require(
                value is None or value >= minimum,
                f"{self.section}.{name}",
                value,
                f"a whole number >= {minimum}",
            )

    @property
    def windows(self) -> list[Any]:
        """Return the window lengths, in tokens."""
        return list(self.seq_len) if isinstance(self.seq_len, list | tuple) else [self.seq_len]

    @abstractmethod
    def task(
        self, text: str, seq_len: int, tokens_NT: Tensor, bytes_N: Tensor, **about: Any
    ) -> Task:
        """Return the task of a text's windows.

        text: its name. seq_len: the length that is asked for. bytes_N: of UTF-8 that the scored tokens of each window
        stand for. about: the fields of `Task` that tell of the text.
        """

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Read the texts and return one task for each text and window length.

        Raises:
            ValueError: a window is longer than the model's context, or a text cannot be read or is too short.
        """
        if max_length is not None and (longest := max(self.windows)) > max_length:
            raise ValueError(
                f"{self.section}.seq_len={longest}: the model's context ends at {max_length}"
            )
        return list(self._tasks(tokenizer, tokenizer, max_length))

    def prepare_again(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        before: PreTrainedTokenizerBase,
    ) -> list[Task]:
        """Return the tasks with another tokenizer, each window with the text of the one that `before` cuts.

        A window that has more tokens now than the model's context ends with it.
        """
        return list(self._tasks(tokenizer, before, max_length))

    def _tasks(
        self,
        tokenizer: PreTrainedTokenizerBase,
        cut_by: PreTrainedTokenizerBase,
        max_length: int | None,
    ) -> Iterator[Task]:
        field = f"{self.section}.datasets"
        bos = uses_bos(cut_by, self.bos, f"{self.section}.bos")
        texts = [read_text(dataset, "evaluation", field) for dataset in self.datasets]
        for text, seq_len in product(texts, self.windows):
            tokens_NT = evaluation_windows(text, cut_by, seq_len, self.max_tokens, bos, field)
            if tokenizer is not cut_by:
                tokens_NT = retokenised(tokens_NT, cut_by, tokenizer, bos)[:, :max_length]
            bytes_N = text_bytes(tokens_NT[:, 1:], tokenizer).sum(dim=1)
            yield self.task(
                text.name,
                seq_len,
                tokens_NT,
                bytes_N,
                identity={
                    "tokens": tokens_sha256(tokens_NT),
                    "bytes": tokens_sha256(bytes_N),
                    "bos": bos,
                    "batch_size": self.batch_size,
                },
                origin=text.origin,
                text_sha256=text.sha256,
                needs_memory=False,
                dataset=text.name,
            )
