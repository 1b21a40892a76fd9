"""`vocabulary=trim`, which selects the tokens of the vocabulary that stay.

All other tokens are removed from the tokenizer and from the model.

Legend of tensor suffixes: V: tokens of the old vocabulary, by id · R: the same tokens in the order
of a ranking · K: tokens that stay · S: tokens of a text · N: windows · T: tokens of a window.
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.config import require
from flap.data import Windows
from flap.data.window_pool import tokenized
from flap.method.vocabulary.expected import expected, sampled
from flap.method.vocabulary.rows import named_ids
from flap.method.vocabulary.tokens import Tokens
from flap.models import PlacedModel


@dataclass(frozen=True, eq=False)
class Ranking:
    """A ranking of a tokenizer's tokens. The first n tokens form a trimmed vocabulary of n tokens.

    Tokens that must stay come first. All other tokens follow, sorted by their worth: how often they
    occur in the texts, plus how often the model expects them if this was estimated (`of` has the
    formula). But the tokens from which the tokenizer builds a token (`Tokens.needed`) always come
    before this token.
    """

    tokens: Tokens
    names: list[str]
    counts_R: Tensor

    @classmethod
    def of(cls, tokens: Tokens, counts_V: Tensor, share_V: Tensor | None = None) -> "Ranking":
        """Return the ranking of tokens. Tokens of equal worth are ordered by id.

            worth_v = c_v + Σ_t p(v | x_<t)

        c_v is how often token v occurs in the texts, and p(v | x_<t) is the probability that the
        model predicts for v at position t of the texts. The sum Σ_t says how often the model
        expects v. The sum is estimated as the number of tokens in the texts, multiplied by share_V:
        the mean probability that the model predicts for each token (`expected`). Because of the
        sum, tokens that do not occur in the texts can stay, too. Without share_V, the worth is only
        c_v. The formula is not from a paper.
        """
        worth_V = counts_V if share_V is None else counts_V + counts_V.sum() * share_V
        name_of = {i: token for token, i in tokens.ids.items()}
        names = dict.fromkeys(sorted(tokens.stay, key=tokens.ids.__getitem__))

        def shortest_first(token: str) -> tuple[int, int]:
            return len(token), tokens.ids[token]

        for i in torch.argsort(worth_V, descending=True, stable=True).tolist():
            if i in name_of:
                parts = sorted(tokens.needed(name_of[i]), key=shortest_first)
                names |= dict.fromkeys(parts)
        ids_R = torch.tensor([tokens.ids[name] for name in names])
        return cls(tokens, list(names), counts_V[ids_R])

    def covering(self, share: float) -> int:
        """Return how many tokens must stay to make up at least this share of the texts' tokens.

        The tokens that stay are the first tokens of the ranking. They always include all tokens
        that must stay (`Tokens.stay`).
        """
        # allow for rounding errors, because the weighted counts of a mixture of texts are not whole
        # numbers
        enough = share * float(self.counts_R.sum()) * (1 - 1e-9)
        number = 1 + int((self.counts_R.cumsum(0) < enough).sum())
        return max(len(self.tokens.stay), number)


class KeptTokens(NamedTuple):
    """The tokens that stay after trimming."""

    tokens: Tokens  # all tokens of the tokenizer
    names: list[str]  # the kept tokens, as they are written in tokenizer.json
    # how often the kept tokens occur in the texts, divided by the number of all tokens in the texts
    covered: float


@dataclass(frozen=True)
class Trimmed:
    """A tokenizer from which tokens were removed."""

    tokenizer: PreTrainedTokenizerBase
    rows_K: Tensor  # the old ids of the tokens that stay, in the order of the new ids
    # entries of the run's report: how many rows the embedding has before and after trimming, and
    # the share of kept tokens in the counted texts (`KeptTokens.covered`)
    facts: dict[str, float]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, kept: KeptTokens, rows: int) -> "Trimmed":
        """Build a tokenizer with the kept tokens. rows: number of rows of the old embedding."""
        spec, old_ids = kept.tokens.cut(set(kept.names))
        trimmed = deepcopy(tokenizer)
        trimmed._tokenizer = Tokenizer.from_str(json.dumps(spec))
        facts = {"before": rows, "after": len(kept.names), "covered": kept.covered}
        return cls(trimmed, torch.tensor(old_ids), facts)


@dataclass(frozen=True)
class Trim:
    """Keep the tokens that occur most often in texts, or that the model expects most often.

    With `coverage`, tokens are chosen only by their counts in the texts, so the number of tokens
    that stay is known before weights are read. With `size`, tokens are also chosen by how often the
    model expects them in the texts (`Ranking.of`). If a target, such as target.bytes, allows more
    tokens than `coverage` needs, as many tokens stay as the target allows, and they are chosen in
    the same way as with `size`.

    If a token stays, all tokens from which the tokenizer builds this token stay, too. Special,
    added and byte tokens stay, so that every text can still be tokenised. If some tokens of a text
    were removed, the text has more tokens than before. If all tokens of a text stay, trimming
    changes neither these tokens nor the logits of the kept tokens.

    Command: python -m flap ratio=null target.bytes=200e6 vocabulary=trim
    """

    # The tokens that stay make up at least this share of the texts' tokens, above 0 and at most 1.
    # The most frequent tokens are chosen first, until this share is reached. More tokens stay only
    # if a target, such as target.bytes, allows more.
    coverage: float = 0.999
    # the number of tokens that stay; if it is given, `coverage` has no effect
    size: int | None = None
    # text or mixture of texts in which tokens are counted; None stands for the calibration texts
    dataset: Any = None

    def __post_init__(self) -> None:
        valid = 0 < self.coverage <= 1
        require(valid, "vocabulary.coverage", self.coverage, "a number above 0 and at most 1")

    @property
    def without_effect(self) -> dict[str, str]:
        """The options that have no effect: a dict from option to reason."""
        if self.size is None:
            return {}
        return {"vocabulary.coverage": f"vocabulary.size={self.size} decides how many tokens stay"}

    def check(self, tokens: Tokens) -> None:
        """Check that `size` is possible for a tokenizer with these tokens.

        Raises:
            ValueError: more tokens than `size` must stay, or the tokenizer has fewer tokens than
                `size`.
        """
        fewest = len(tokens.stay)
        most = len(tokens.ids)
        which = "special, added and byte tokens, which have to stay"
        valid = self.size is None or fewest <= self.size <= most
        allowed = f"{fewest} ({which}) to {most}, all tokens"
        require(valid, "vocabulary.size", self.size, allowed)

    def number(self, tokens: Tokens, texts: Windows, rows: int, room: int) -> int:
        """Return how many tokens stay.

        rows: number of rows of the embedding.
        room: the largest number of tokens for which a model with unpruned layers still meets all
            targets, such as target.bytes; 0 if there is no such number, or if no target limits
            parameters.
        """
        if self.size is not None:
            return self.size
        needed = Ranking.of(tokens, counted(texts, rows)).covering(self.coverage)
        return max(needed, min(room, len(tokens.ids)))

    def choose(self, model: PlacedModel, texts: Windows, room: int) -> KeptTokens:
        """Choose the tokens that stay.

        texts: the texts in which tokens are counted, and for which the model predicts tokens.
        room: see `number`.
        """
        rows = model.adapter.vocab_size
        tokens = Tokens.of(texts.tokenizer, rows, named_ids(model.model))
        counts_V = counted(texts, rows)
        size = self.number(tokens, texts, rows, room)
        ranking = Ranking.of(tokens, counts_V)
        if self.size is not None or size > ranking.covering(self.coverage):
            ranking = Ranking.of(tokens, counts_V, _expected_in(texts, model))
        covered = float(ranking.counts_R[:size].sum() / ranking.counts_R.sum())
        return KeptTokens(tokens, ranking.names[:size], covered)


def _expected_in(texts: Windows, model: PlacedModel) -> Tensor:
    """Return the mean probability that the model predicts for each token (share_V).

    The mean is taken over the positions of some windows of the texts (`sampled`).
    """
    number = len(texts.existing)
    windows = [sampled(text, texts.tokenizer, texts.bos, number) for text in texts.existing]
    share_V = expected(model, windows, [part.weight for part in texts.parts])
    return share_V[: model.adapter.vocab_size]


def counted(texts: Windows, rows: int) -> Tensor:
    """Return how often each token occurs in the texts (counts_V).

    If the texts are a mixture, the counts of each text are multiplied by a factor, so that the sum
    of this text's counts is proportional to the text's weight in the mixture. The factors are
    chosen so that all counts together sum to the number of tokens of all texts.
    """
    counts = []
    for text in texts.existing:
        tokens_S = tokenized(text, texts.tokenizer, texts.bos).tokens_S
        counts.append(tokens_S.bincount(minlength=rows)[:rows].double())
    all_weights = sum(part.weight for part in texts.parts)
    all_tokens = sum(float(count_V.sum()) for count_V in counts)
    weighted = []
    for part, count_V in zip(texts.parts, counts, strict=True):
        weighted.append(part.weight / all_weights * all_tokens * count_V / count_V.sum())
    return torch.stack(weighted).sum(dim=0)
