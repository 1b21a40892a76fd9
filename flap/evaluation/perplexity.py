"""Perplexity over windows of a fixed length.

Legend: N windows · T tokens in each window · D hidden size · V vocabulary · P scored positions.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from flap.config import require
from flap.console.progress import progress
from flap.data import Text, begins_with_bos, evaluation_windows, read_text, tokens_sha256
from flap.evaluation.base import Evaluator, Task
from flap.models import PlacedModel

# The size of the logits in memory: positions are scored in chunks of this size, whatever the vocabulary.
LOGITS_BYTES = 2**28


@dataclass(frozen=True)
class Perplexity(Evaluator):
    """The perplexity of texts, exp(negative log-likelihood / scored tokens); lower is better.

    datasets: names or local files. seq_len: tokens in each window, or a list of such; it is part of the number's name.
    max_tokens: how much of each text is used; None = all of it. bos: whether each window begins with the
    beginning-of-sequence token, which is not scored: "true", "false", or "auto": where the tokenizer puts one there.
    """

    datasets: list[str]
    seq_len: Any = 128
    max_tokens: int | None = 16384
    batch_size: int = 8
    bos: str = "auto"

    def __post_init__(self) -> None:
        valid = bool(self.windows) and all(type(length) is int and length >= 2 for length in self.windows)
        require(valid, "eval.perplexity.seq_len", self.seq_len, "a whole number >= 2, or a list of such")
        for name, minimum in (("max_tokens", max(self.windows)), ("batch_size", 1)):
            value = getattr(self, name)
            require(value is None or value >= minimum, f"eval.perplexity.{name}", value, f"a whole number >= {minimum}")

    @property
    def windows(self) -> list[Any]:
        """Return the window lengths, in tokens."""
        return list(self.seq_len) if isinstance(self.seq_len, list | tuple) else [self.seq_len]

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Read the texts and return one task for each text and window length.

        Raises:
            ValueError: a window is longer than the model's context, or a text cannot be read or is too short.
        """
        if max_length is not None and (longest := max(self.windows)) > max_length:
            raise ValueError(f"eval.perplexity.seq_len={longest}: the model's context ends at {max_length}")
        texts = [read_text(dataset, "evaluation", "eval.perplexity.datasets") for dataset in self.datasets]
        return [self._task(text, seq_len, tokenizer) for text in texts for seq_len in self.windows]

    def _task(self, text: Text, seq_len: int, tokenizer: PreTrainedTokenizerBase) -> Task:
        bos = begins_with_bos(tokenizer, self.bos, "eval.perplexity.bos")
        tokens_NT = evaluation_windows(text, tokenizer, seq_len, self.max_tokens, bos)
        name = f"{text.name}/perplexity@{seq_len}"
        run = partial(self._run, name=name, tokens_NT=tokens_NT)
        identity = {"tokens": tokens_sha256(tokens_NT), "bos": bos}
        return Task(name, run, identity, text.origin, text.sha256, needs_memory=False, dataset=text.name)

    def _run(self, model: PlacedModel, name: str, tokens_NT: Tensor) -> dict[str, float]:
        return {name: perplexity(model, tokens_NT, self.batch_size)}


@torch.no_grad()
def perplexity(model: PlacedModel, tokens_NT: Tensor, batch_size: int) -> float:
    """Return exp of the mean negative log-likelihood over tokens 2 … T of each window; lower is better.

    Logits are float32. The result is infinite if the mean is above 700 nats, where exp would overflow.
    """
    adapter, total = model.adapter, 0.0
    batches_NT, chunk = tokens_NT.split(batch_size), chunk_size(int(adapter.model.config.vocab_size))
    states = model.hidden_states(batches_NT)
    for batch_NT in progress(batches_NT, "perplexity", Tensor.numel):
        batch_NT, hidden_NTD = batch_NT.to(model.device), next(states)
        hidden_PD, target_P = hidden_NTD[:, :-1].flatten(0, 1), batch_NT[:, 1:].flatten()
        for hidden, target in zip(hidden_PD.split(chunk), target_P.split(chunk), strict=True):
            logits = adapter.logits(hidden).float()
            total += cross_entropy(logits, target.to(logits.device), reduction="sum").item()
    mean = total / (tokens_NT.shape[0] * (tokens_NT.shape[1] - 1))
    return math.inf if mean > 700 else math.exp(mean)


def chunk_size(vocab_size: int) -> int:
    """Return the number of positions whose float32 logits fit into LOGITS_BYTES."""
    return max(1, LOGITS_BYTES // (4 * vocab_size))
