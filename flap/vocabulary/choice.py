"""The order in which tokens stay, by how much each matters, and what the removal of each costs.

Legend: V the old vocabulary, by id · R the tokens in the order in which they stay.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flap.search.curve import convex_steps
from flap.vocabulary.tokens import Tokens

NATS = 8.0  # that each removed token of a text costs; see `Ranking.nats_R`


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
    worth_R: Tensor

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
        return cls(tokens, list(names), counts_V[ids_R], worth_V[ids_R])

    @property
    def fewest(self) -> int:
        """The tokens that have to stay."""
        return len(self.tokens.stay)

    def covering(self, share: float) -> int:
        """Return how many tokens stay, so that they are this share of all counted ones, or more."""
        enough = share * float(self.counts_R.sum()) * (1 - 1e-9)  # counts of mixtures are not whole
        return max(self.fewest, 1 + int((self.counts_R.cumsum(0) < enough).sum()))

    @property
    def nats_R(self) -> Tensor:
        """What the removal of each token costs, in nats a token of text; does not rise; infinite where it has to stay.

        nats_v = 8 · worth_v / Σ c, ours. A removed token of a text costs 8 nats, whichever it is: measured on SmolLM2,
        7.7 to 8.7 on average over texts (experiments/bytes/README.md, which also says how near worth / Σ c comes to the
        share of unseen text). Sums from the end are replaced by their lower convex envelope: a token that matters less
        than what is made of it counts with that on average.
        """
        nats_R = NATS * self.worth_R[self.fewest :] / self.counts_R.sum()
        rising = convex_steps([0.0, *nats_R.flip(0).cumsum(0).tolist()])
        return torch.cat([torch.full((self.fewest,), math.inf, dtype=torch.float64), rising.flip(0)])


def raised(size: int, multiple_of: int) -> int:
    """Return the smallest multiple that is not below a size."""
    return math.ceil(size / multiple_of) * multiple_of
