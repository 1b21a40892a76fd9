"""The base class of evaluators that cut texts into windows of a fixed length.

Legend: the suffix of a tensor's name lists its axes (N: windows, T: tokens of a window).
"""

from abc import abstractmethod
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.config import require, require_counts
from flap.data import (
    Batch,
    Text,
    batch_sha256,
    evaluation_windows,
    read_text,
    retokenised,
    text_bytes,
    tokens_sha256,
    uses_bos,
)
from flap.data.named_texts import HUB
from flap.data.overlap import Document, as_written, document_of
from flap.evaluation.base import Evaluator, Leaving, Task
from flap.runtime.agenda import Workload


class Cutting(NamedTuple):
    """How texts are cut into windows of tokens."""

    tokenizer: PreTrainedTokenizerBase  # the tokenizer of the measured model
    # the tokenizer with which a text is cut into windows of equally many tokens. If it differs from
    # `tokenizer`, the windows are converted to tokens of `tokenizer` afterwards.
    cut_by: PreTrainedTokenizerBase
    bos: bool  # whether windows begin with the beginning-of-sequence token
    max_length: int | None  # maximum length of a window in tokens of `tokenizer`; None if unlimited

    def in_tokens(self, windows_NT: Tensor) -> Batch:
        """Convert windows from tokens of `cut_by` to tokens of `tokenizer`.

        A converted window has at most `max_length` tokens.
        """
        if self.tokenizer is self.cut_by:
            return Batch.of(windows_NT)
        again = retokenised(windows_NT, self.cut_by, self.tokenizer, self.bos)
        return again[:, : self.max_length]


@dataclass(frozen=True)
class OnTexts(Evaluator):
    """Base class of evaluators that create one task for each text and window length.

    These tasks can run with only one layer of the model in memory.
    """

    section: ClassVar[str]  # config section that error messages name, such as "eval.perplexity"

    datasets: list[str]  # names of texts, or paths of local files
    # The number of tokens in a window, 2 or more, or a list of such numbers. The names of the
    # measured numbers contain the window length, as in "perplexity@2048".
    seq_len: Any = 128
    # number of tokens to use from each text, at least the length of a window; None uses the whole
    # text
    max_tokens: int | None = 16384
    batch_size: int = 8  # windows in a batch; 1 or more
    # whether windows begin with the BOS token: "true", "false", or "auto", which means true if the
    # tokenizer puts BOS in front of texts
    bos: str = "auto"

    def __post_init__(self) -> None:
        require(bool(self.datasets), self.field, "[]", "at least one text")
        require(
            all(isinstance(dataset, str) for dataset in self.datasets),
            self.field,
            self.datasets,
            "names of texts, or files with a column 'text'",
        )
        lengths = [length for length in self.windows if type(length) is int and length >= 2]
        require(
            lengths == self.windows != [],
            f"{self.section}.seq_len",
            self.seq_len,
            "a whole number >= 2, or a list of whole numbers >= 2",
        )
        require_counts(self, self.section, max_tokens=max(lengths), batch_size=1)

    @property
    def field(self) -> str:
        """The config key of the texts, for error messages."""
        return f"{self.section}.datasets"

    @property
    def windows(self) -> list[Any]:
        """Return the window lengths, in tokens."""
        return list(self.seq_len) if isinstance(self.seq_len, list | tuple) else [self.seq_len]

    @abstractmethod
    def task(self, text: str, seq_len: int, windows: Batch, bytes_N: Tensor, **about: Any) -> Task:
        """Return the task that measures the windows of a text.

        text: the name of the text. seq_len: the window length in the config. windows: the windows
            of the text. bytes_N: for each window, the number of UTF-8 bytes of its scored tokens.
            about: the fields of `Task` that describe the text.
        """

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Read the texts and return one task for each text and window length.

        Raises:
            ValueError: a window is longer than the model's context, or a text cannot be read or is
                too short.
        """
        longest = max(self.windows)
        if max_length is not None and longest > max_length:
            raise ValueError(
                f"{self.section}.seq_len={longest}: the model's context ends at {max_length}"
            )
        return self.prepare_again(tokenizer, max_length, tokenizer)

    def prepare_again(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        before: PreTrainedTokenizerBase,
    ) -> list[Task]:
        """Return one task for each text and window length.

        tokenizer: the tokenizer of the measured model. before: the tokenizer with which the texts
            are cut into windows. The two tokenizers are different if the vocabulary was trimmed.

        The text of a window does not depend on `tokenizer`, with two exceptions. If the tokenizers
        are different, incomplete characters at the edges of the window are left out. If the window
        has more tokens of `tokenizer` than fit into the model's context, its end is cut off.
        """
        bos = uses_bos(before, self.bos, f"{self.section}.bos")
        cutting = Cutting(tokenizer, before, bos, max_length)
        texts = [read_text(dataset, "evaluation", self.field) for dataset in self.datasets]
        pairs = product(texts, self.windows)
        return [self._task(text, seq_len, cutting) for text, seq_len in pairs]

    def _task(self, text: Text, seq_len: int, cutting: Cutting) -> Task:
        windows_NT = evaluation_windows(
            text, cutting.cut_by, seq_len, self.max_tokens, cutting.bos, self.field
        )
        windows = cutting.in_tokens(windows_NT)
        scored = windows[:, 1:]
        bytes_NT = text_bytes(scored.tokens_NT, cutting.tokenizer)
        bytes_N = torch.where(scored.mask_NT, bytes_NT, 0).sum(dim=1)
        identity = {
            "tokens": batch_sha256(windows),
            "bytes": tokens_sha256(bytes_N),
            "bos": cutting.bos,
            "batch_size": self.batch_size,
        }
        return self.task(
            text.name,
            seq_len,
            windows,
            bytes_N,
            identity=identity,
            origin=text.origin,
            text_sha256=text.sha256,
            needs_memory=False,
            dataset=text.name,
            workload=Workload(read=windows.numel()),
            leaving=self._leaving(text, seq_len, cutting),
        )

    def _leaving(self, text: Text, seq_len: int, cutting: Cutting) -> Leaving | None:
        """Describe how to leave out documents of a text; return None if the text must stay whole.

        Documents that the run has used for calibration or training are left out. A text with fewer
        than two documents stays whole. The texts in `HUB` stay whole, too, because results on these
        texts are compared with published results.
        """
        if text.name in HUB or len(text.documents) < 2:
            return None

        def documents() -> list[Document]:
            return [document_of(document, (), as_written) for document in text.documents]

        def without(numbers: frozenset[int]) -> Task:
            remaining = [one for n, one in enumerate(text.documents) if n not in numbers]
            return self._task(Text.joined(text.name, remaining, text.origin), seq_len, cutting)

        return Leaving(f"{self.field}={text.name}", documents, without, as_written)
