"""The choice of the tokens that stay.

Legend: V the old vocabulary, by id.
"""

import math

import torch
from torch import Tensor

from flap.vocabulary.tokens import Tokens


def worth(counts_V: Tensor, tokens: Tokens) -> Tensor:
    """Return how much each token matters, worth_V, higher = keep; of equal ones the lower id stays.

    It is how often a token was counted. Where ids are in the order of merges, as in most tokenizers, tokens that nobody
    counted stay by their rank.
    """
    return counts_V


def choose(
    counts_V: Tensor, tokens: Tokens, size: int | None = None, coverage: float | None = None, multiple_of: int = 1
) -> set[str]:
    """Return the tokens that stay: in the order of their worth, each with all that it is made of.

    size: how many. coverage: or the share of all counted tokens, counts_V, that they are at least. multiple_of: of this
    their number is a multiple; there are more of them for that, and not rows without a token.
    """
    names, kept = {i: token for token, i in tokens.ids.items()}, set(tokens.stay)
    counts = counts_V.tolist()
    enough = (coverage or math.inf) * sum(counts) * (1 - 1e-9)  # counts of mixtures are not whole
    limit = raised(size, multiple_of) if size else math.inf
    covered = sum(counts[tokens.ids[token]] for token in kept)
    for i in torch.argsort(worth(counts_V, tokens), descending=True, stable=True).tolist():
        if covered >= enough:
            limit, enough = min(limit, raised(len(kept), multiple_of)), math.inf
        if len(kept) >= limit:
            break
        more = set(tokens.needed(names[i])) - kept if i in names else set()
        if len(kept) + len(more) <= limit:
            kept |= more
            covered += sum(counts[tokens.ids[token]] for token in more)
    return kept


def raised(size: int, multiple_of: int) -> int:
    """Return the smallest multiple that is not below a size."""
    return math.ceil(size / multiple_of) * multiple_of
