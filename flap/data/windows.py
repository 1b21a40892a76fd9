"""Token windows for calibration and evaluation: texts by weight, cut into windows of one or more lengths.

Legend: N windows · T tokens in each window.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.config import require
from flap.data.dialogue import Asked
from flap.data.mixture import SELF, Part
from flap.data.text import Text
from flap.data.window_pool import Pool, TooFewWindowsError, apportioned, mixed

BOS = ("auto", "true", "false")


@dataclass(frozen=True)
class Windows:
    """The calibration windows of a mixture of texts. No two of them overlap."""

    parts: tuple[Part, ...]
    texts: tuple[Text | None, ...]  # of each part; None: the model has still to write it
    tokenizer: PreTrainedTokenizerBase
    num_samples: int  # windows if all had the first length
    lengths: tuple[int, ...]  # tokens in a window, of one or more kinds of windows, which share the tokens equally
    seed: int  # of the draw
    bos: bool = False  # each window begins with the beginning-of-sequence token
    field: str = "calibration"  # the config's section, for error messages
    asked: Mapping[int, Asked] = field_of(default_factory=dict)  # by the number of the part, where prompts are answered

    @property
    def existing(self) -> list[Text]:
        """The texts that are not still to write."""
        return [text for text in self.texts if text is not None]

    @property
    def to_write(self) -> list[int]:
        """The numbers of the parts that the model has still to write."""
        return [p for p, text in enumerate(self.texts) if text is None]

    @property
    def own_length(self) -> int:
        """The tokens that one of the longest windows takes from a text; BOS is not among them."""
        return max(self.lengths) - self.bos

    def tokens_to_write(self, part: int) -> int:
        """Return the tokens that the model's own text must have, in stretches that hold one of the longest windows.

        Or as many shorter ones as fit. One more stretch is for tokens that are lost when the text is tokenized again.
        """
        fit = ((self.counts(seq_len)[part], self.own_length // (seq_len - self.bos)) for seq_len in self.lengths)
        return (1 + sum(math.ceil(count / in_stretch) for count, in_stretch in fit)) * max(self.lengths)

    def written(self, part: int, text: Text) -> "Windows":
        return replace(self, texts=(*self.texts[:part], text, *self.texts[part + 1 :]))

    def counts(self, seq_len: int) -> list[int]:
        """Return the number of windows of a length that are from each part, in proportion to the weights."""
        total = num_windows(self.num_samples, self.lengths, seq_len)
        return apportioned(total, [part.weight for part in self.parts])

    @cached_property
    def drawn(self) -> list[dict[int, Tensor]]:
        """The windows of each part by their length, tokens_NT; {} for the part that is still to write.

        Raises:
            ValueError: a text has too few windows.
        """
        return [{} if text is None else self._draw(p, text) for p, text in enumerate(self.texts)]

    @property
    def by_length(self) -> list[Tensor]:  # tokens_NT
        return [mixed([windows[seq_len] for windows in self.drawn]) for seq_len in self.lengths]

    @property
    def text_by_length(self) -> list[Tensor]:
        """The number of the text that each of these windows is from, text_N for each length."""
        counts = [[len(windows[seq_len]) for windows in self.drawn] for seq_len in self.lengths]
        return [mixed([torch.full((count,), p) for p, count in enumerate(of_parts)]) for of_parts in counts]

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that the windows depend on, as part of cache keys. It is the same before and after the model has written.

        What the model writes depends on the model, its tokenizer and the part's options.
        """
        parts = [[part.dataset, part.weight, part.packing, bool(part.chat_template)] for part in self.parts]
        tokens = [
            [tokens_sha256(tokens_NT) for tokens_NT in windows.values()]
            for p, windows in enumerate(self.drawn)
            if p not in self.asked and self.parts[p].dataset != SELF
        ]
        answered = [asked.key for asked in self.asked.values()]
        vocabulary = self.tokenizer.get_vocab() if len(tokens) < len(parts) else {}
        return {
            "parts": parts, "num_samples": self.num_samples, "lengths": self.lengths, "seed": self.seed,
            "bos": self.bos, "tokens": tokens, "vocabulary": _sha256(json.dumps(vocabulary, sort_keys=True)),
            **({"answered": answered} if answered else {}),
        }  # fmt: skip

    def _draw(self, p: int, text: Text) -> dict[int, Tensor]:
        """Return the windows of a part; the longest are drawn first."""
        pool, windows = Pool(text, self.tokenizer, self.bos, self.parts[p].packing), {}
        way = "packing: true, or a longer text" if len(pool.lengths) > 1 else "a longer text"
        for seq_len in sorted(self.lengths, reverse=True):
            try:
                windows[seq_len] = pool.draw(self.counts(seq_len)[p], seq_len, self.seed)
            except TooFewWindowsError as error:
                raise ValueError(
                    f"{self.field}.dataset={text.name}: {error.available} windows of {seq_len} tokens are too few for "
                    f"the {error.wanted} that are its share of {self.field}.num_samples={self.num_samples}; lower it, "
                    f"or {self.field}.seq_len, or its weight, or take {way}"
                ) from error
        return windows


def num_windows(num_samples: int, lengths: Sequence[int], seq_len: int) -> int:
    """Return the number of windows of a length; the lengths share the tokens of `num_samples` of the first one."""
    return max(1, round(num_samples * lengths[0] / len(lengths) / seq_len))


def begins_with_bos(tokenizer: PreTrainedTokenizerBase, bos: str, field: str) -> bool:
    """Return whether every window begins with the beginning-of-sequence token.

    bos: true, false, or auto: true where the tokenizer by itself puts the token in front of a text. A model that was
    trained so does not work without it: Gemma 3 270M has perplexity 307 instead of 34 in windows of 128.

    Raises:
        ValueError: `bos` is none of these, or the tokenizer has no such token.
    """
    choice = bos.lower()
    require(choice in BOS, field, bos, f"one of {', '.join(BOS)}")
    if choice == "true" and tokenizer.bos_token_id is None:
        raise ValueError(f"{field}={bos}: the tokenizer has no beginning-of-sequence token; expected auto or false")
    if choice != "auto":
        return choice == "true"
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def evaluation_windows(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    max_tokens: int | None,
    bos: bool = False,
    field: str = "eval.perplexity.datasets",
) -> Tensor:
    """Return the first windows of the text, in order, as tokens_NT (int64). max_tokens: at most this many; None: all.

    field: the config key that error messages name.

    Raises:
        ValueError: the text is shorter than one window.
    """
    pool = Pool(text, tokenizer, bos)
    tokens_NT = pool.cut(seq_len)
    if not len(tokens_NT):
        tokens = len(pool.tokens_S)
        raise ValueError(f"{field}={text.name}: its {tokens} tokens do not fill one window of {seq_len}")
    return tokens_NT if max_tokens is None else tokens_NT[: max(1, max_tokens // seq_len)]


def tokens_sha256(tokens_NT: Tensor) -> str:
    """Return the SHA-256 of token windows, in hex digits: it depends on text, tokenizer, number, length and order."""
    return _sha256(tokens_NT.numpy().tobytes() + str(tuple(tokens_NT.shape)).encode())


def _sha256(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
