"""How often the model itself expects each token in a text: of tokens that nobody counted, the likely ones stay.

Legend: N windows · T tokens in each window · D hidden size · P positions · V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.data import Pool, Text
from flap.data.counted import unmarked
from flap.evaluation.base import over_batches
from flap.evaluation.perplexity import chunk_size
from flap.models import PlacedModel

TOKENS = 16384  # that the model reads; more change which tokens stay by little
LENGTH = 256  # of a window
BATCH = 8  # windows at a time


def sampled(text: Text, tokenizer: PreTrainedTokenizerBase, bos: bool, of: int) -> Tensor:
    """Return windows from all over a text, tokens_NT; of: as many texts share the tokens."""
    pool = Pool(text, tokenizer, bos)
    tokens_NT = unmarked(pool.cut(min(LENGTH, len(pool.tokens_S) + bos)))
    return tokens_NT[:: math.ceil(tokens_NT.numel() * of / TOKENS)]


@torch.no_grad()
def expected(model: PlacedModel, windows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the share of each token in what the model expects of texts, the mean of p(v | x_<t) over t: share_V.

    It is float64. windows: tokens_NT of each text. weights: of the texts, in the mean over them.
    """
    longest = getattr(model.adapter.config, "max_position_embeddings", None)
    cut = [tokens_NT[:, :longest] for tokens_NT in windows]
    pairs = list(zip(weights, cut, strict=True))
    batches = [
        (weight / cut_NT.numel(), batch_NT)
        for weight, cut_NT in pairs
        for batch_NT in cut_NT.split(BATCH)
    ]
    chunk = chunk_size(model.adapter.vocab_size)

    def summed(batch_NT: Tensor, hidden_NTD: Tensor) -> Tensor:
        parts = hidden_NTD.flatten(0, 1).split(chunk)
        probabilities = [
            model.adapter.logits(part_PD).float().softmax(-1).sum(dim=0) for part_PD in parts
        ]
        return torch.stack(probabilities).double().sum(dim=0).cpu()

    sums = over_batches(model, [batch_NT for _, batch_NT in batches], "expected tokens", summed)
    total_V = torch.stack(
        [weight * sum_V for (weight, _), sum_V in zip(batches, sums, strict=True)]
    ).sum(dim=0)
    return total_V / total_V.sum()
