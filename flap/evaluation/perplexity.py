"""Measure perplexity over windows of a fixed length, and bits per byte of the windows' text.

Legend: the suffix of a tensor's name lists its axes (N: windows, T: tokens of a window, D: hidden
size, V: vocabulary, P: scored positions).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flap.data import Batch
from flap.evaluation.base import Measurement, Task
from flap.evaluation.text_options import OnTexts
from flap.models import ModelAdapter, PlacedModel
from flap.models.predictions import map_batches, positions_per_chunk


@dataclass(frozen=True)
class Perplexity(OnTexts):
    """The perplexity of texts, exp(-Σ log p(x_t | x_<t) / n); lower is better.

    n is the number of scored tokens x_t, and x_<t are the tokens before x_t in the same window. The
    first token of each window is not scored.

    The evaluator also measures bits per byte, -Σ log₂ p(x_t | x_<t) / B, where B is the number of
    UTF-8 bytes of the scored tokens. Lower is better. Use bits per byte to compare models with
    different tokenizers. The options are described in `OnTexts`.

    Sources: Jelinek et al., JASA 62 (1977), for perplexity; Gao et al., arXiv 2101.00027, section
    3.1, for bits per byte.
    Command: python -m flap eval=[perplexity] eval.perplexity.datasets=[wikitext2]
    """

    section: ClassVar[str] = "eval.perplexity"

    def task(self, text: str, seq_len: int, windows: Batch, bytes_N: Tensor, **about: Any) -> Task:
        """Return a task that measures the perplexity and the bits per byte of a text's windows."""
        name = f"{text}/perplexity@{seq_len}"

        def measure(model: PlacedModel) -> Measurement:
            tokens_N = windows.mask_NT[:, 1:].sum(dim=1)
            nats_N = window_losses(model, windows, self.batch_size) * tokens_N
            losses_N = ratio_values(nats_N, tokens_N)
            bits_N = ratio_values(nats_N / math.log(2), bytes_N)
            mean_bits = bits_N.mean().item()
            measured = _measured(name, perplexity(losses_N), linearised(losses_N))
            return measured | _measured(f"{text}/bits_per_byte@{seq_len}", mean_bits, bits_N)

        return Task(name, measure, **about)

    def needs_same_tokenizer(self, name: str) -> bool:
        """Return whether `name` names a perplexity.

        Perplexities of models with different tokenizers cannot be compared.
        """
        return "/perplexity@" in name


def _measured(name: str, number: float, values_N: Tensor) -> Measurement:
    """Return a measurement of one number, such as a perplexity; lower is better.

    If the number is finite, the measurement also has the value of each window.
    """
    values = {name: values_N.tolist()} if math.isfinite(number) else {}
    return Measurement({name: number}, values, {name: "lower"})


def perplexity(losses_N: Tensor) -> float:
    """Return the perplexity: exp of the mean of the windows' losses, which are in nats.

    Lower is better. The perplexity is infinite if the mean loss is above 700 nats, because exp
    overflows a little above this value.
    """
    mean = losses_N.mean().item()
    return math.inf if mean > 700 else math.exp(mean)


def linearised(losses_N: Tensor) -> Tensor:
    """Return for each window the value p · (1 + loss - mean loss), where p is the perplexity.

    The mean of these values is p. The values are linear in the losses, with the slope that exp has
    at the mean loss. Therefore the standard error of the mean of these values is the standard error
    that the delta method gives for p. To compare two models, take the difference between their
    values for each window. The mean of these differences is the difference between the two
    perplexities, and has the standard error that the delta method gives.
    """
    return perplexity(losses_N) * (1 + losses_N - losses_N.mean())


def ratio_values(one_N: Tensor, other_N: Tensor) -> Tensor:
    """Return a value for each window, so that the mean of these values is r = Σ one_N / Σ other_N.

    one_N, other_N: two quantities of each window, such as the sum of its losses and its number of
        tokens.

    The value of a window is r + (one - r · other) / m, where one and other are the quantities of
    this window, and m is the mean of other_N. As in `linearised`, the standard error of the mean of
    these values is the standard error that the delta method gives for r.
    """
    ratio = one_N.sum() / other_N.sum()
    return ratio + (one_N - ratio * other_N) / other_N.double().mean()


@torch.no_grad()
def window_losses(model: PlacedModel, windows: Batch, batch_size: int) -> Tensor:
    """Return losses_N, the mean negative log-likelihood of tokens 2 … T of each window.

    The losses are in nats, as float64, and are computed from float32 logits. Tokens whose mask is
    false are not scored.
    """
    chunk = positions_per_chunk(model.adapter.vocab_size)

    def measure(batch_NT: Tensor, hidden_NTD: Tensor) -> Tensor:
        hidden_PD = hidden_NTD[:, :-1].flatten(0, 1)
        target_P = batch_NT[:, 1:].to(model.device).flatten()
        pairs = zip(hidden_PD.split(chunk), target_P.split(chunk), strict=True)
        losses_P = torch.cat([_losses(model.adapter, *pair) for pair in pairs])
        return losses_P.double().view(len(batch_NT), -1)

    batches_NT = windows.tokens_NT.split(batch_size)
    losses_NT = torch.cat(map_batches(model, batches_NT, "perplexity", measure))
    scored_NT = windows.mask_NT[:, 1:]
    nats_N = torch.where(scored_NT, losses_NT, 0).sum(dim=1)
    return nats_N / scored_NT.sum(dim=1).clamp(min=1)


def _losses(adapter: ModelAdapter, hidden_PD: Tensor, target_P: Tensor) -> Tensor:
    logits_PV = adapter.logits(hidden_PD).float()
    return cross_entropy(logits_PV, target_P.to(logits_PV.device), reduction="none").cpu()
