"""Perplexity over windows of a fixed length.

Legend: N windows · T tokens in each window · D hidden size · V vocabulary · P scored positions.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flap.evaluation.base import Measurement, Task
from flap.evaluation.text_options import OnTexts
from flap.models import ModelAdapter, PlacedModel
from flap.storage import ranks
from flap.storage.progress import progress

# The size of the logits in memory: positions are scored in chunks of this size, whatever the vocabulary.
LOGITS_BYTES = 2**28


@dataclass(frozen=True)
class Perplexity(OnTexts):
    """The perplexity of texts, exp(-Σ log p(x_t | x_<t) / n) of their n scored tokens x_t; lower is better.

    The first token of a window is not scored. Options: `OnTexts`. Source: Jelinek et al., JASA 62 (1977).

    Command: python -m flap eval=[perplexity] eval.perplexity.datasets=[wikitext2] eval.perplexity.seq_len=2048
    """

    section: ClassVar[str] = "eval.perplexity"

    def task(self, text: str, tokens_NT: Tensor, **about: Any) -> Task:
        """Return the task of a text's windows, whose name is that of its number."""
        name = f"{text}/perplexity@{tokens_NT.shape[1]}"
        return Task(name, partial(self._measure, name=name, tokens_NT=tokens_NT), **about)

    def _measure(self, model: PlacedModel, name: str, tokens_NT: Tensor) -> Measurement:
        losses_N = window_losses(model, tokens_NT, self.batch_size)
        value = perplexity(losses_N)
        windows = {name: linearised(losses_N).tolist()} if math.isfinite(value) else {}
        return Measurement({name: value}, windows, better={name: "lower"})


def perplexity(losses_N: Tensor) -> float:
    """Return exp of the mean loss of windows of one length; lower is better. Infinite above 700 nats, as exp is."""
    mean = losses_N.mean().item()
    return math.inf if mean > 700 else math.exp(mean)


def linearised(losses_N: Tensor) -> Tensor:
    """Return one value for each window whose mean is the perplexity: p · (1 + loss - mean loss).

    It is linear in the losses, with the slope of exp at their mean. So the standard error of a mean of these values, or
    of the differences between those of two models, is that of the delta method.
    """
    return perplexity(losses_N) * (1 + losses_N - losses_N.mean())


@torch.no_grad()
def window_losses(model: PlacedModel, tokens_NT: Tensor, batch_size: int) -> Tensor:
    """Return the mean negative log-likelihood of tokens 2 … T of each window, in nats: losses_N in float64.

    Logits are float32.
    """
    batches_NT, chunk = ranks.mine(tokens_NT.split(batch_size)), chunk_size(model.adapter.vocab_size)
    states, losses = model.hidden_states(batches_NT), []
    for batch_NT in progress(batches_NT, "perplexity", Tensor.numel):
        batch_NT, hidden_NTD = batch_NT.to(model.device), next(states)
        hidden_PD, target_P = hidden_NTD[:, :-1].flatten(0, 1), batch_NT[:, 1:].flatten()
        pairs = zip(hidden_PD.split(chunk), target_P.split(chunk), strict=True)
        losses_P = torch.cat([_losses(model.adapter, *pair) for pair in pairs]).double()
        losses.append(losses_P.reshape(len(batch_NT), -1).mean(dim=1))
    return torch.cat(ranks.together(losses))


def _losses(adapter: ModelAdapter, hidden_PD: Tensor, target_P: Tensor) -> Tensor:
    logits_PV = adapter.logits(hidden_PD).float()
    return cross_entropy(logits_PV, target_P.to(logits_PV.device), reduction="none").cpu()


def chunk_size(vocab_size: int) -> int:
    """Return the number of positions whose float32 logits fit into LOGITS_BYTES."""
    return max(1, LOGITS_BYTES // (4 * vocab_size))
