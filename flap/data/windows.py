"""Token windows for calibration, training and evaluation, and how they are cut from texts.

Windows for calibration and training come from a mixture of texts. Each text of the mixture is
called a *part*. The model itself may generate the text of a part, or answer the prompts in it.

Legend: N: windows · T: tokens per window.
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
from flap.data.batch import Batch
from flap.data.dialogue import Asked
from flap.data.mixture import SELF, Part
from flap.data.text import Text
from flap.data.window_pool import Pool, apportioned, mixed
from flap.storage import digest

BOS = ("auto", "true", "false")


@dataclass(frozen=True)
class Windows:
    """Non-overlapping token windows of a mixture of texts. Each text of the mixture is a *part*."""

    parts: tuple[Part, ...]
    # the text of each part of the mixture; None if the model has not generated this text yet
    texts: tuple[Text | None, ...]
    tokenizer: PreTrainedTokenizerBase
    num_samples: int  # number of windows to draw
    seq_len: int  # number of tokens in a window
    seed: int  # seed for drawing windows at random
    bos: bool = False  # whether each window begins with the beginning-of-sequence token
    field: str = "calibration"  # the config section, for error messages
    # a dict from the index of a part to its prompts, only for parts whose prompts the model answers
    asked: Mapping[int, Asked] = field_of(default_factory=dict)
    counted: str = "all"  # over which tokens statistics are computed: "all" or "answers"
    # a dict from the name of each text to all documents of the text, or to the turns of all prompts
    # in the text, including documents and prompts that are in no window
    read: Mapping[str, tuple[str, ...]] = field_of(default_factory=dict)

    @property
    def existing(self) -> list[Text]:
        """The texts of all parts, without the texts that the model has not generated yet."""
        return [text for text in self.texts if text is not None]

    @property
    def named(self) -> list[Text]:
        """The texts of all parts, each with its name and its origin.

        If the model has not answered the prompts of a part yet, the text of this part is empty. The
        text `self`, which the model generates without prompts, is left out until it exists.
        """
        named = list[Text]()
        for p, text in enumerate(self.texts):
            if text is not None:
                named.append(text)
            elif p in self.asked:
                named.append(Text(self.asked[p].name, "", self.asked[p].origin))
        return named

    @property
    def to_write(self) -> list[int]:
        """The indices of the parts whose text the model has not generated yet."""
        return [p for p, text in enumerate(self.texts) if text is None]

    def name(self, part: int) -> str:
        """Return the name of a part, such as "a.txt", or "2-a.txt" if several parts are a.txt."""
        names = [Path(one.dataset).name for one in self.parts]
        return names[part] if names.count(names[part]) == 1 else f"{part + 1}-{names[part]}"

    def tokens_to_write(self, part: int) -> int:
        """Return the number of tokens that a part's text must have if the model generates the text.

        In a text of prompts that the model answers, the tokens of the prompts are included. The
        number is enough for one window more than the part needs, because the generated text may
        have fewer tokens when it is tokenised again.
        """
        return (1 + self.counts[part]) * self.seq_len

    def written(self, part: int, text: Text) -> "Windows":
        """Return a copy of this object with `text`, which the model has generated for a part."""
        return replace(self, texts=(*self.texts[:part], text, *self.texts[part + 1 :]))

    @property
    def counts(self) -> list[int]:
        """The number of windows of each part, in proportion to the weights of the parts."""
        return apportioned(self.num_samples, [part.weight for part in self.parts])

    @cached_property
    def drawn(self) -> list[Batch | None]:
        """The windows of each part, with a mask of the tokens in answers.

        None stands for a part whose text the model has not generated yet.

        Raises:
            ValueError: a text has too few tokens for its windows; or only tokens in answers are
                counted, and the windows of a text with answers contain fewer of these tokens than
                there are windows.
        """
        return [None if text is None else self._draw(p, text) for p, text in enumerate(self.texts)]

    @property
    def in_answers(self) -> Batch:
        """The windows of all parts that have a text, with a mask of the tokens in answers.

        In texts without answers, the mask is true for all tokens.
        """
        known = [batch for batch in self.drawn if batch is not None]
        tokens_NT = mixed([batch.tokens_NT for batch in known])
        mask_NT = mixed([batch.mask_NT for batch in known])
        return Batch(tokens_NT, mask_NT)

    @property
    def batch(self) -> Batch:
        """The windows of all parts that have a text, with a mask of the counted tokens.

        The field `counted` says whether all tokens are counted, or only the tokens in answers.
        """
        in_answers = self.in_answers
        return in_answers if self.counted == "answers" else Batch.of(in_answers.tokens_NT)

    @property
    def text_N(self) -> Tensor:
        """For each window, the index of the part that the window belongs to."""
        return mixed([torch.full((count,), p) for p, count in enumerate(self.counts)])

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that the windows depend on, except the model, as entries of a cache key.

        These entries do not change when the model generates a text, because this text depends only
        on the model, the tokenizer, and values that are already in the key.
        """
        parts = [[part.dataset, part.weight, bool(part.chat_template)] for part in self.parts]
        tokens = list[str]()
        for p, batch in enumerate(self.drawn):
            from_model = p in self.asked or self.parts[p].dataset == SELF
            if batch is not None and not from_model:
                tokens.append(batch_sha256(batch))
        vocabulary = self.tokenizer.get_vocab() if len(tokens) < len(parts) else {}
        key = {
            "parts": parts,
            "num_samples": self.num_samples,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "bos": self.bos,
            "tokens": tokens,
            "vocabulary": digest(vocabulary),
        }
        if self.asked:
            key["answered"] = [asked.key for asked in self.asked.values()]
        has_answers = bool(self.asked) or any(text.counted for text in self.existing)
        if self.counted == "answers" and has_answers:
            key["counted"] = self.counted
        return key

    def _draw(self, p: int, text: Text) -> Batch:
        pool = Pool(text, self.tokenizer, self.bos)
        wanted = self.counts[p]
        batch = pool.draw(wanted, self.seq_len, self.seed)
        if len(batch) < wanted:
            amount = "tokens" if self.field == "recover" else "num_samples"
            raise ValueError(
                f"{self.field}.dataset={text.name}: {len(batch)} windows of {self.seq_len} "
                f"tokens are too few for the {wanted} that are its share of {self.num_samples}; "
                f"lower {self.field}.{amount} or {self.field}.seq_len, or its weight, or take a "
                "longer text or more prompts"
            )
        if self.counted == "answers" and text.counted:
            answers = int(batch.mask_NT.sum())  # number of answer tokens
            allowed = (
                f"all, or longer windows: of {batch.numel():,} tokens of {text.name} {answers} "
                "are in answers"
            )
            require(answers >= wanted, "calibration.count", self.counted, allowed)
        return batch


def uses_bos(tokenizer: PreTrainedTokenizerBase, bos: str, field: str) -> bool:
    """Return whether every window begins with the beginning-of-sequence token (BOS).

    bos: true, false or auto. With auto, windows begin with BOS if the tokenizer puts BOS in front
        of texts by default. Some models that were trained with BOS do not work without it: in
        windows of 128 tokens, Gemma 3 270M has a perplexity of 34 with BOS, and of 307 without it.
    field: the config key that error messages name.

    Raises:
        ValueError: `bos` is not true, false or auto, or `bos` is true although the tokenizer has no
            BOS token.
    """
    choice = bos.lower()
    require(choice in BOS, field, bos, f"one of {', '.join(BOS)}")
    if choice == "true" and tokenizer.bos_token_id is None:
        raise ValueError(
            f"{field}={bos}: the tokenizer has no beginning-of-sequence token; expected auto or "
            "false"
        )
    if choice != "auto":
        return choice == "true"
    if tokenizer.bos_token_id is None:
        return False
    first_ids: list[int] = tokenizer("a").input_ids[:1]
    return first_ids == [tokenizer.bos_token_id]


def evaluation_windows(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    max_tokens: int | None,
    bos: bool,
    field: str,
) -> Tensor:
    """Cut a text into windows, and return these windows in order, as tokens_NT (int64).

    max_tokens: the maximum number of tokens in all returned windows together. Later windows are
        left out, but at least one window is returned. If None, all windows are returned.
    field: the config key that error messages name.

    Raises:
        ValueError: the text is shorter than one window.
    """
    pool = Pool(text, tokenizer, bos)
    tokens_NT = pool.cut(seq_len).tokens_NT
    if not len(tokens_NT):
        tokens = len(pool.tokens_S)
        raise ValueError(
            f"{field}={text.name}: its {tokens} tokens do not fill one window of {seq_len}"
        )
    if max_tokens is None:
        return tokens_NT
    return tokens_NT[: max(1, max_tokens // seq_len)]


def batch_sha256(batch: Batch) -> str:
    """Return the SHA-256 of token windows and their mask, in hex digits.

    If the mask of a token with the id i is false, -1 - i is hashed instead of i.
    """
    return tokens_sha256(torch.where(batch.mask_NT, batch.tokens_NT, -1 - batch.tokens_NT))


def tokens_sha256(tokens_NT: Tensor) -> str:
    """Return the SHA-256 of token windows and their shape, in hex digits."""
    shape = str(tuple(tokens_NT.shape))
    return hashlib.sha256(tokens_NT.numpy().tobytes() + shape.encode()).hexdigest()
