"""Token windows for calibration and evaluation: texts by weight, cut into windows.

Legend: N windows · T tokens in each window.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.config import require
from flap.data.counted import unmarked
from flap.data.dialogue import Asked
from flap.data.mixture import SELF, Part
from flap.data.text import Text
from flap.data.window_pool import Pool, apportioned, mixed
from flap.storage import digest

BOS = ("auto", "true", "false")


@dataclass(frozen=True)
class Windows:
    """The calibration windows of a mixture of texts. No two of them overlap."""

    parts: tuple[Part, ...]
    texts: tuple[Text | None, ...]  # of each part; None: the model has still to write it
    tokenizer: PreTrainedTokenizerBase
    num_samples: int  # windows
    seq_len: int  # tokens in a window
    seed: int  # of the draw
    bos: bool = False  # each window begins with the beginning-of-sequence token
    field: str = "calibration"  # the config's section, for error messages
    asked: Mapping[int, Asked] = field_of(
        default_factory=dict
    )  # by the number of the part, where prompts are answered
    counted: str = "all"  # tokens: all, or those of the answers
    # by name, all that the texts of the mixture supply, whatever is drawn from it: documents, or turns of prompts
    read: Mapping[str, tuple[str, ...]] = field_of(default_factory=dict)

    @property
    def existing(self) -> list[Text]:
        """The texts that are not still to write."""
        return [text for text in self.texts if text is not None]

    @property
    def named(self) -> list[Text]:
        """The texts; of prompts that the model has still to answer only name and origin."""
        asked = {p: Text(one.name, "", one.origin) for p, one in self.asked.items()}
        return [text or asked[p] for p, text in enumerate(self.texts) if text or p in asked]

    @property
    def to_write(self) -> list[int]:
        """The numbers of the parts that the model has still to write."""
        return [p for p, text in enumerate(self.texts) if text is None]

    def name(self, part: int) -> str:
        """Return the name of a part, with its number where another file has the same name."""
        names = [Path(one.dataset).name for one in self.parts]
        return names[part] if names.count(names[part]) == 1 else f"{part + 1}-{names[part]}"

    def tokens_to_write(self, part: int) -> int:
        """Return the tokens that the model's own text must have.

        One more window is for tokens that are lost when the text is tokenized again.
        """
        return (1 + self.counts[part]) * self.seq_len

    def written(self, part: int, text: Text) -> "Windows":
        return replace(self, texts=(*self.texts[:part], text, *self.texts[part + 1 :]))

    @property
    def counts(self) -> list[int]:
        """The number of windows that are from each part, in proportion to the weights."""
        return apportioned(self.num_samples, [part.weight for part in self.parts])

    @cached_property
    def drawn(self) -> list[Tensor | None]:
        """The windows of each part, tokens_NT, with marks; None: the model has still to write them.

        Raises:
            ValueError: a text has too few windows.
        """
        return [None if text is None else self._draw(p, text) for p, text in enumerate(self.texts)]

    @property
    def marked_NT(self) -> Tensor:
        """The windows of all parts that are there; in texts that have answers, all other tokens are marked."""
        return mixed([windows_NT for windows_NT in self.drawn if windows_NT is not None])

    @property
    def tokens_NT(self) -> Tensor:
        """The same windows; only tokens that do not count are marked."""
        return self.marked_NT if self.counted == "answers" else unmarked(self.marked_NT)

    @property
    def text_N(self) -> Tensor:
        """The number of the text that each of these windows is from."""
        return mixed([torch.full((count,), p) for p, count in enumerate(self.counts)])

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that the windows depend on, as part of cache keys. It is the same before and after the model has written.

        What the model writes depends on the model, its tokenizer and the part's options.
        """
        parts = [[part.dataset, part.weight, bool(part.chat_template)] for part in self.parts]
        tokens = [
            tokens_sha256(windows_NT)
            for p, windows_NT in enumerate(self.drawn)
            if windows_NT is not None and p not in self.asked and self.parts[p].dataset != SELF
        ]
        answered = [asked.key for asked in self.asked.values()]
        has_answers = bool(answered) or any(text.counted for text in self.existing)
        vocabulary = self.tokenizer.get_vocab() if len(tokens) < len(parts) else {}
        return {
            "parts": parts, "num_samples": self.num_samples, "seq_len": self.seq_len, "seed": self.seed,
            "bos": self.bos, "tokens": tokens, "vocabulary": digest(vocabulary),
            **({"answered": answered} if answered else {}),
            **({"counted": self.counted} if self.counted == "answers" and has_answers else {}),
        }  # fmt: skip

    def _draw(self, p: int, text: Text) -> Tensor:
        """Return the windows of a part."""
        pool = Pool(text, self.tokenizer, self.bos)
        wanted = self.counts[p]
        tokens_NT = pool.draw(wanted, self.seq_len, self.seed)
        if len(tokens_NT) < wanted:
            amount = "tokens" if self.field == "recover" else "num_samples"
            raise ValueError(
                f"{self.field}.dataset={text.name}: {len(tokens_NT)} windows of {self.seq_len} tokens are too few for "
                f"the {wanted} that are its share of {self.num_samples}; lower {self.field}.{amount} or "
                f"{self.field}.seq_len, or its weight, or take a longer text or more prompts"
            )
        answers = int((tokens_NT >= 0).sum())
        alone = self.counted == "answers" and text.counted
        allowed = f"all, or longer windows: of {tokens_NT.numel():,} tokens of {text.name} {answers} are in answers"
        require(answers >= wanted or not alone, "calibration.count", self.counted, allowed)
        return tokens_NT


def uses_bos(tokenizer: PreTrainedTokenizerBase, bos: str, field: str) -> bool:
    """Return whether every window begins with the beginning-of-sequence token.

    bos: true, false, or auto: true where the tokenizer by itself puts the token in front of a text. A model that was
    trained so does not work without it: Gemma 3 270M has perplexity 307 instead of 34 in windows of 128.

    Raises:
        ValueError: `bos` is none of these, or the tokenizer has no such token.
    """
    choice = bos.lower()
    require(choice in BOS, field, bos, f"one of {', '.join(BOS)}")
    if choice == "true" and tokenizer.bos_token_id is None:
        raise ValueError(
            f"{field}={bos}: the tokenizer has no beginning-of-sequence token; expected auto or false"
        )
    if choice != "auto":
        return choice == "true"
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [
        tokenizer.bos_token_id
    ]


def evaluation_windows(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    max_tokens: int | None,
    bos: bool,
    field: str,
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
        raise ValueError(
            f"{field}={text.name}: its {tokens} tokens do not fill one window of {seq_len}"
        )
    return tokens_NT if max_tokens is None else tokens_NT[: max(1, max_tokens // seq_len)]


def tokens_sha256(tokens_NT: Tensor) -> str:
    """Return the SHA-256 of token windows, in hex digits: it depends on text, tokenizer, number, length and order."""
    return hashlib.sha256(
        tokens_NT.numpy().tobytes() + str(tuple(tokens_NT.shape)).encode()
    ).hexdigest()
