"""Perplexity over windows of fixed length.

Legend: N windows · T tokens a window · D hidden size · V vocabulary · P scored positions.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from flap.calibration import Text, evaluation_windows, read_text, tokens_sha256
from flap.evaluation.base import Evaluator, Task
from flap.models import AnyModel, adapter_of
from flap.models.layerwise import final_hidden_states
from flap.progress import progress

# Logits in flight: a chunk of positions is scored at a time, whatever the vocabulary.
LOGITS_BYTES = 2**28


@dataclass(frozen=True)
class Perplexity(Evaluator):
    """exp(negative log-likelihood / scored tokens), lower is better; the number's name carries the window length.

    datasets: names or local files. seq_len: tokens a window, or a list of such. max_tokens: how much of each text;
    None = all of it.
    """

    datasets: list[str]
    seq_len: Any = 128
    max_tokens: int | None = 16384
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not self.windows or not all(type(one) is int and one >= 2 for one in self.windows):
            raise ValueError(f"eval.perplexity.seq_len={self.seq_len}: expected a whole number >= 2, or a list of such")
        for name, least in (("max_tokens", max(self.windows)), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"eval.perplexity.{name}={value}: expected a whole number >= {least}")

    @property
    def windows(self) -> list[Any]:
        return list(self.seq_len) if isinstance(self.seq_len, list | tuple) else [self.seq_len]

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        if max_length is not None and (longest := max(self.windows)) > max_length:
            raise ValueError(f"eval.perplexity.seq_len={longest}: the model's context ends at {max_length}")
        texts = [read_text(dataset, "evaluation", "eval.perplexity.datasets") for dataset in self.datasets]
        return [self._task(text, seq_len, tokenizer) for text in texts for seq_len in self.windows]

    def _task(self, text: Text, seq_len: int, tokenizer: PreTrainedTokenizerBase) -> Task:
        tokens_NT = evaluation_windows(text, tokenizer, seq_len, self.max_tokens)
        name = f"{text.name}/perplexity@{seq_len}"
        run = partial(self._run, name=name, tokens_NT=tokens_NT)
        identity = {"tokens": tokens_sha256(tokens_NT)}
        return Task(name, run, identity, text.origin, text.sha256, streams=True, dataset=text.name)

    def _run(self, model: AnyModel, name: str, tokens_NT: Tensor) -> dict[str, float]:
        return {name: perplexity(model, tokens_NT, self.batch_size)}


@torch.no_grad()
def perplexity(model: AnyModel, tokens_NT: Tensor, batch_size: int) -> float:
    """exp of the mean negative log-likelihood over tokens 2 … T of each window; logits in float32."""
    adapter, total = adapter_of(model), 0.0
    batches_NT, chunk = tokens_NT.split(batch_size), chunk_size(int(adapter.model.config.vocab_size))
    states = final_hidden_states(model, batches_NT)
    for batch_NT in progress(batches_NT, "perplexity", Tensor.numel):
        batch_NT, hidden_NTD = batch_NT.to(model.device), next(states)
        hidden_PD, target_P = hidden_NTD[:, :-1].flatten(0, 1), batch_NT[:, 1:].flatten()
        for hidden, target in zip(hidden_PD.split(chunk), target_P.split(chunk), strict=True):
            logits = adapter.logits(hidden).float()
            total += cross_entropy(logits, target.to(logits.device), reduction="sum").item()
    mean = total / (tokens_NT.shape[0] * (tokens_NT.shape[1] - 1))
    return math.inf if mean > 700 else math.exp(mean)


def chunk_size(vocab_size: int) -> int:
    """How many positions' logits in float32 fit into LOGITS_BYTES."""
    return max(1, LOGITS_BYTES // (4 * vocab_size))
