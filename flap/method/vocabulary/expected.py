"""Compute how probable a model considers each token, on average over the positions of texts.

If the tokens of a trimmed vocabulary are chosen by this mean probability, they can include tokens
that the model expects, but that do not occur in the texts.

Legend of tensor suffixes: N: windows · T: tokens in each window · D: hidden size · P: positions ·
V: tokens of the vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.data import Pool, Text
from flap.models import PlacedModel
from flap.models.predictions import map_batches, positions_per_chunk

TOKENS = 16384  # number of tokens that the model reads; more tokens would hardly change the result
LENGTH = 256  # number of tokens in each window that the model reads
BATCH = 8  # number of windows in a forward pass


def sampled(text: Text, tokenizer: PreTrainedTokenizerBase, bos: bool, texts: int) -> Tensor:
    """Return windows of tokens (tokens_NT) that are spread evenly over a text.

    texts: the number of texts over which the mean probability is computed. At most about
        TOKENS / texts tokens are taken from each text.
    """
    pool = Pool(text, tokenizer, bos)
    tokens_NT = pool.cut(min(LENGTH, len(pool.tokens_S) + bos)).tokens_NT
    step = math.ceil(tokens_NT.numel() * texts / TOKENS)
    return tokens_NT[::step]


@torch.no_grad()
def expected(model: PlacedModel, windows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the mean probability that the model predicts for each token (share_V), in float64.

    The element for token v is the mean of p(v | x_<t) over all positions t of the windows.
    p(v | x_<t) is the predicted probability that v follows the tokens before position t.

    windows: the windows of each text, as tokens_NT.
    weights: the weight of each text in the mean.
    """
    longest = getattr(model.adapter.config, "max_position_embeddings", None)
    batches = []
    weight_of_batches = []
    for weight, tokens_NT in zip(weights, windows, strict=True):
        cut_NT = tokens_NT[:, :longest]
        for batch_NT in cut_NT.split(BATCH):
            batches.append(batch_NT)
            weight_of_batches.append(weight / cut_NT.numel())
    chunk = positions_per_chunk(model.adapter.vocab_size)

    def summed(batch_NT: Tensor, hidden_NTD: Tensor) -> Tensor:
        """Sum the predicted probabilities of each token over the positions of a batch."""
        sums = []
        for hidden_PD in hidden_NTD.flatten(0, 1).split(chunk):
            p_PV = model.adapter.logits(hidden_PD).float().softmax(-1)
            sums.append(p_PV.sum(dim=0))
        return torch.stack(sums).double().sum(dim=0).cpu()

    sums = map_batches(model, batches, "expected tokens", summed)
    weighted = [weight * sum_V for weight, sum_V in zip(weight_of_batches, sums, strict=True)]
    total_V = torch.stack(weighted).sum(dim=0)
    return total_V / total_V.sum()
