"""The order in which tokens stay, by how much each matters.

Legend: V the old vocabulary, by id · R the tokens in the order in which they stay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flap.vocabulary.tokens import Tokens


def worth(counts_V: Tensor, share_V: Tensor) -> Tensor:
    """Return how much each token matters, worth_V, higher = keep; of equal ones the lower id stays.

    worth = c_v + Σ_t p(v | x_<t): how often a token was counted, and how often the model expected it in a text of as
    many tokens. So the likely ones stay of those that nobody counted. The formula is ours; share_V: see `expected`.
    """
    return counts_V + counts_V.sum() * share_V


@dataclass(frozen=True, eq=False)
class Ranking:
    """The tokens in the order in which they stay: those that have to, then by worth, each after what it is made of."""

    tokens: Tokens
    names: list[str]
    counts_R: Tensor

    @classmethod
    def of(cls, tokens: Tokens, counts_V: Tensor, share_V: Tensor) -> "Ranking":
        """Return the ranking of tokens that were counted and expected so often."""
        worth_V, by_id = worth(counts_V, share_V), {i: token for token, i in tokens.ids.items()}
        names = dict.fromkeys(sorted(tokens.stay, key=tokens.ids.__getitem__))
        for i in torch.argsort(worth_V, descending=True, stable=True).tolist():
            if i in by_id:
                parts = sorted(tokens.needed(by_id[i]), key=lambda token: (len(token), tokens.ids[token]))
                names |= dict.fromkeys(parts)
        ids_R = torch.tensor([tokens.ids[name] for name in names])
        return cls(tokens, list(names), counts_V[ids_R])

    @property
    def fewest(self) -> int:
        """The tokens that have to stay."""
        return len(self.tokens.stay)

    def covering(self, share: float) -> int:
        """Return how many tokens stay, so that they are this share of all counted ones, or more."""
        enough = share * float(self.counts_R.sum()) * (1 - 1e-9)  # counts of mixtures are not whole
        return max(self.fewest, 1 + int((self.counts_R.cumsum(0) < enough).sum()))
