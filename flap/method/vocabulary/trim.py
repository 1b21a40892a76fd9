"""The choice of the `vocabulary` group, and what it makes of a tokenizer.

Legend: V the old vocabulary, by id · R the tokens in the order in which they stay · K those that stay · S tokens of a
text.
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
from flap.data.counted import unmarked
from flap.data.window_pool import tokenized
from flap.method.vocabulary.expected import expected, sampled
from flap.method.vocabulary.rows import named_ids
from flap.method.vocabulary.tokens import Tokens
from flap.models import PlacedModel


@dataclass(frozen=True, eq=False)
class Ranking:
    """The tokens in the order in which they stay: those that have to, then by worth, each after what it is made of."""

    tokens: Tokens
    names: list[str]
    counts_R: Tensor

    @classmethod
    def of(cls, tokens: Tokens, counts_V: Tensor, share_V: Tensor) -> "Ranking":
        """Return the ranking of tokens; of equal worth the lower id stays. The formula of worth is ours.

            worth = c_v + Σ_t p(v | x_<t)

        How often a token was counted, and how often the model expected it in a text of as many tokens (share_V: see
        `expected`). So the likely ones stay of those that nobody counted.
        """
        worth_V = counts_V + counts_V.sum() * share_V
        by_id = {i: token for token, i in tokens.ids.items()}
        names = dict.fromkeys(sorted(tokens.stay, key=tokens.ids.__getitem__))
        for i in torch.argsort(worth_V, descending=True, stable=True).tolist():
            if i in by_id:
                parts = sorted(
                    tokens.needed(by_id[i]), key=lambda token: (len(token), tokens.ids[token])
                )
                names |= dict.fromkeys(parts)
        ids_R = torch.tensor([tokens.ids[name] for name in names])
        return cls(tokens, list(names), counts_V[ids_R])

    def covering(self, share: float) -> int:
        """Return how many tokens stay, so that they are this share of all counted ones, or more."""
        enough = share * float(self.counts_R.sum()) * (1 - 1e-9)  # counts of mixtures are not whole
        return max(len(self.tokens.stay), 1 + int((self.counts_R.cumsum(0) < enough).sum()))


class KeptTokens(NamedTuple):
    """The tokens that stay."""

    tokens: Tokens  # all of the tokenizer
    names: list[str]  # of those that stay
    covered: float  # the share that they are of the counted ones


@dataclass(frozen=True)
class Trimmed:
    """A tokenizer without the tokens that were removed."""

    tokenizer: PreTrainedTokenizerBase
    rows_K: Tensor  # the old ids of its tokens, in the order of the new ones
    facts: dict[
        str, float
    ]  # for the report: tokens before and after, and the share of the counted ones that stay

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, kept: KeptTokens, rows: int) -> "Trimmed":
        """Return a tokenizer of these tokens. rows: of the model before."""
        spec, old_ids = kept.tokens.cut(set(kept.names))
        trimmed = deepcopy(tokenizer)
        trimmed._tokenizer = Tokenizer.from_str(json.dumps(spec))
        return cls(
            trimmed,
            torch.tensor(old_ids),
            {"before": rows, "after": len(kept.names), "covered": kept.covered},
        )

    @classmethod
    def of_checkpoint(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        before: PreTrainedTokenizerBase,
        facts: dict[str, float],
    ) -> "Trimmed":
        """Return the tokenizer of a trimmed checkpoint. before: that of the dense model."""
        ids = tokenizer.get_vocab()
        old_ids = before.get_vocab()
        return cls(
            tokenizer,
            torch.tensor([old_ids[token] for token in sorted(ids, key=ids.__getitem__)]),
            facts,
        )

    def reread(self, tokens_NT: Tensor, before: PreTrainedTokenizerBase) -> Tensor:
        """Return windows of the dense model's tokens in these, cut to their length: a removed one becomes its parts."""
        model = self.tokenizer.backend_tokenizer.model
        ids = {old: [new] for new, old in enumerate(self.rows_K.tolist())}
        for old in set(unmarked(tokens_NT).flatten().tolist()) - ids.keys():
            ids[old] = [part.id for part in model.tokenize(before.convert_ids_to_tokens(old))]
        ids |= {
            -1 - old: [-1 - part for part in parts] for old, parts in ids.items()
        }  # of tokens that do not count
        windows = [[new for old in window for new in ids[old]] for window in tokens_NT.tolist()]
        return torch.tensor([window[: tokens_NT.shape[1]] for window in windows])


@dataclass(frozen=True)
class Trim:
    """The tokens that stay: those counted or expected most often in texts, and all that they are made of.

    Special, added and byte tokens stay, so any text can still be written, one of rare tokens in more of them. On a
    text of tokens that stay, tokens and logits are those of the dense model.

    Command: python -m flap ratio=0 vocabulary=trim vocabulary.size=32768
    """

    size: int | None = None  # tokens that stay; or coverage
    coverage: float | None = None  # share of the counted tokens that stay, above 0 and at most 1
    dataset: Any = None  # a text or mixture in which tokens are counted; None: that of calibration

    def __post_init__(self) -> None:
        allowed = "one of vocabulary.size=32768 and vocabulary.coverage=0.9999"
        given = {
            name: value
            for name, value in (("size", self.size), ("coverage", self.coverage))
            if value is not None
        }
        require(len(given) == 1, "vocabulary", " and ".join(given) or "trim", allowed)
        valid = self.coverage is None or 0 < self.coverage <= 1
        require(valid, "vocabulary.coverage", self.coverage, "a number above 0 and at most 1")

    def check(self, tokens: Tokens) -> None:
        """Check that so many tokens can stay.

        Raises:
            ValueError: more have to, or there are no more.
        """
        fewest = len(tokens.stay)
        most = len(tokens.ids)
        allowed = (
            f"{fewest} (special, added and byte tokens, which have to stay) to {most}, all tokens"
        )
        require(
            self.size is None or fewest <= self.size <= most, "vocabulary.size", self.size, allowed
        )

    def choose(
        self, tokenizer: PreTrainedTokenizerBase, model: PlacedModel, texts: Windows
    ) -> KeptTokens:
        """Return the tokens that stay. texts: in which they are counted and expected."""
        rows = model.adapter.vocab_size
        windows = [
            sampled(text, tokenizer, texts.bos, len(texts.existing)) for text in texts.existing
        ]
        share_V = expected(model, windows, [part.weight for part in texts.parts])[:rows]
        tokens = Tokens.of(tokenizer, rows, named_ids(model.model))
        ranking = Ranking.of(tokens, counted(texts, tokenizer, rows), share_V)
        number = self.size if self.coverage is None else ranking.covering(self.coverage)
        covered = float(ranking.counts_R[:number].sum() / ranking.counts_R.sum())
        return KeptTokens(tokens, ranking.names[:number], covered)


def counted(texts: Windows, tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor:
    """Return how often each token is in the texts, counts_V: each text has its weight, and all have their tokens."""
    counts = []
    for text in texts.existing:
        tokens_S = unmarked(tokenized(text, tokenizer, texts.bos))
        counts.append(tokens_S.bincount(minlength=rows)[:rows].double())
    weight = sum(part.weight for part in texts.parts)
    total = sum(float(count_V.sum()) for count_V in counts)
    pairs = zip(texts.parts, counts, strict=True)
    return torch.stack(
        [part.weight / weight * total * count_V / count_V.sum() for part, count_V in pairs]
    ).sum(dim=0)
