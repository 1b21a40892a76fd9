"""The choice of the tokens that stay.

Legend: V the old vocabulary, by id.
"""

import math

import torch
from torch import Tensor

from flap.vocabulary.tokens import Tokens


def worth(counts_V: Tensor, share_V: Tensor) -> Tensor:
    """Return how much each token matters, worth_V, higher = keep; of equal ones the lower id stays.

    worth = c_v + Σ_t p(v | x_<t): how often a token was counted, and how often the model expected it in a text of as
    many tokens. So the likely ones stay of those that nobody counted. The formula is ours; share_V: see `expected`.
    """
    return counts_V + counts_V.sum() * share_V


def choose(
    counts_V: Tensor,
    share_V: Tensor,
    tokens: Tokens,
    size: int | None = None,
    coverage: float | None = None,
    multiple_of: int = 1,
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
    for i in torch.argsort(worth(counts_V, share_V), descending=True, stable=True).tolist():
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
