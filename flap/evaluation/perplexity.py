"""Perplexity over windows of fixed length.

Legend: N windows · T tokens a window · V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.calibration import evaluation_windows, read_text
from flap.evaluation.base import Evaluator, Task
from flap.progress import progress


@dataclass(frozen=True)
class Perplexity(Evaluator):
    """exp(negative log-likelihood / scored tokens), lower is better; the number's name carries the window length.

    datasets: names or local files. seq_len: tokens a window. max_tokens: how much of each text; None = all of it.
    """

    datasets: list[str]
    seq_len: int = 128
    max_tokens: int | None = 16384
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, least in (("seq_len", 2), ("max_tokens", self.seq_len), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"eval.perplexity.{name}={value}: expected a whole number >= {least}")

    def tasks(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        if max_length is not None and self.seq_len > max_length:
            raise ValueError(f"eval.perplexity.seq_len={self.seq_len}: the model's context ends at {max_length}")
        return [self._task(dataset, tokenizer) for dataset in self.datasets]

    def _task(self, dataset: str, tokenizer: PreTrainedTokenizerBase) -> Task:
        text = read_text(dataset, "evaluation", "eval.perplexity.datasets")
        tokens_NT = evaluation_windows(text, tokenizer, self.seq_len, self.max_tokens)
        name = f"{text.name}/perplexity@{self.seq_len}"
        return Task(name, partial(self._run, name=name, tokens_NT=tokens_NT), text.sha256)

    def _run(self, model: PreTrainedModel, name: str, tokens_NT: Tensor) -> dict[str, float]:
        return {name: perplexity(model, tokens_NT, self.batch_size)}


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens_NT: Tensor, batch_size: int) -> float:
    """exp of the mean negative log-likelihood over tokens 2 … T of each window; logits in float32."""
    total = 0.0
    for batch_NT in progress(tokens_NT.split(batch_size), "perplexity"):
        batch_NT = batch_NT.to(model.device)
        logits_NTV = model(input_ids=batch_NT, use_cache=False).logits[:, :-1].float()
        total += cross_entropy(logits_NTV.flatten(0, 1), batch_NT[:, 1:].flatten(), reduction="sum").item()
    scored = tokens_NT.shape[0] * (tokens_NT.shape[1] - 1)
    mean = total / scored
    return math.inf if mean > 700 else math.exp(mean)
