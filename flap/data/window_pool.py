"""Draw token windows from a text, and interleave the windows of several texts.

Legend: N: windows · T: tokens per window · S: tokens of a text.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeVar
from uuid import uuid4

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from flap.data.batch import Batch
from flap.data.text import Span, Text

W = TypeVar("W", Tensor, Batch)

# Every fifth window is held out. Coefficients, for example of compensation=linear, are fitted on
# the other windows. The held-out windows are used, for example, to choose the strength of the ridge
# regularisation of this fit.
HELD_OUT = 5


class TextTokens(NamedTuple):
    """The tokens of a text."""

    tokens_S: Tensor
    mask_S: Tensor  # true for tokens in answers; in a text without answers, true for all tokens


class Pool:
    """The tokens of a text, from which non-overlapping windows are drawn.

    The text is tokenised as a whole, so a window may contain pieces of several documents.

    bos: whether every window begins with the beginning-of-sequence token, which counts as one of
        the window's tokens. If false, only the first window of the text begins with the tokens that
        the tokenizer adds in front of a text, as in the official code of FLAP.
    """

    def __init__(self, text: Text, tokenizer: PreTrainedTokenizerBase, bos: bool) -> None:
        self.tokens_S, self.mask_S = tokenized(text, tokenizer, bos)
        self.bos_token: int | None = tokenizer.bos_token_id if bos else None
        # Whether the mask is true for BOS. In a text with answers, the mask is false for BOS,
        # because BOS is not part of an answer.
        self.bos_counts = not (text.counted and tokenizer.is_fast)

    def cut(self, seq_len: int) -> Batch:
        """Cut the text into windows of `seq_len` tokens, and return the windows in order.

        Tokens at the end of the text that do not fill a window are left out.
        """
        return self._windows(self._positions(seq_len))

    def draw(self, num_windows: int, seq_len: int, seed: int) -> Batch:
        """Draw `num_windows` windows at random, or all windows if the text has fewer."""
        positions_NT = self._positions(seq_len)
        order_N = torch.randperm(len(positions_NT), generator=torch.Generator().manual_seed(seed))
        return self._windows(positions_NT[order_N[:num_windows]])

    def _positions(self, seq_len: int) -> Tensor:
        """Return, for each window, the indices of its tokens in `tokens_S`.

        If every window begins with BOS, this token is left out, because it is not in `tokens_S`.
        """
        from_text = seq_len if self.bos_token is None else seq_len - 1
        num_windows = len(self.tokens_S) // from_text
        return torch.arange(num_windows * from_text).view(-1, from_text)

    def _windows(self, positions_NT: Tensor) -> Batch:
        tokens_NT = self.tokens_S[positions_NT]
        mask_NT = self.mask_S[positions_NT]
        if self.bos_token is not None:
            tokens_NT = pad(tokens_NT, (1, 0), value=self.bos_token)
            mask_NT = pad(mask_NT, (1, 0), value=self.bos_counts)
        return Batch(tokens_NT, mask_NT)


@dataclass(frozen=True)
class _State:
    """The state of a tokenizer, as a key of the cache of `_tokenized`.

    Tokenizers with equal states tokenise every text in the same way.
    """

    digest: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False)


def tokenized(text: Text, tokenizer: PreTrainedTokenizerBase, bos: bool) -> TextTokens:
    """Tokenise a text.

    A text from a chat template may already begin with BOS. This BOS is left out if the windows or
    the tokenizer put another BOS in front of the text.

    bos: whether every window begins with BOS. The BOS of the windows is not in the returned tokens.
    """
    # Slow tokenizers are Python code, whose state cannot be compared. Therefore, each call with a
    # slow tokenizer gets a new digest, so that the call never returns cached tokens.
    content = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else uuid4().hex
    digest = hashlib.sha256(f"{tokenizer.bos_token_id} {content}".encode()).hexdigest()
    return _tokenized(text, _State(digest, tokenizer), bos)


@lru_cache(maxsize=8)  # cached, so that the runs of a sweep in one process tokenise a text once
def _tokenized(text: Text, state: _State, bos: bool) -> TextTokens:
    tokenizer = state.tokenizer
    answers = text.counted_in_text if tokenizer.is_fast else []
    encoded = tokenizer(
        text.text,
        verbose=False,
        add_special_tokens=not bos,
        return_offsets_mapping=bool(answers),
    )
    tokens_S = torch.tensor(encoded.input_ids).long()
    mask_S = torch.ones_like(tokens_S, dtype=torch.bool)
    if answers:
        mask_S = _begins_in(answers, encoded.offset_mapping)

    repeated = [tokenizer.bos_token_id] * (1 if bos else 2)
    if tokens_S[: len(repeated)].tolist() == repeated:
        return TextTokens(tokens_S[1:], mask_S[1:])
    return TextTokens(tokens_S, mask_S)


def _begins_in(spans: Sequence[Span], offsets: Sequence[Span]) -> Tensor:
    """Return a mask of the tokens that begin inside one of the spans.

    The mask is false for tokens that stand for no characters of the text, such as BOS.

    spans: the spans of the answers in the text, in order.
    offsets: for each token, the index of its first character, and of the first character after it.
    """
    first_S, end_S = torch.tensor(offsets).long().reshape(-1, 2).T.contiguous()
    starts, ends = torch.tensor(spans).T.contiguous()
    # for each token, the index of the last span that begins at or before the token
    span_S = torch.searchsorted(starts, first_S, right=True) - 1
    inside_S: Tensor = (span_S >= 0) & (first_S < ends[span_S]) & (end_S > first_S)
    return inside_S


def apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """Divide the integer `total` into integer shares in proportion to `weights`.

    The method of largest remainders rounds the shares, so that the sum of the shares is `total`.
    """
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda p: shares[p] - exact[p])
    for p in by_remainder[: total - sum(shares)]:
        shares[p] += 1
    return shares


def mixed(parts: Sequence[Tensor]) -> Tensor:
    """Interleave the windows (N, …) of the texts (parts) of a mixture.

    The windows of each text stay in order. The proportions of the texts are nearly the same among
    the held-out windows (every fifth window), among all other windows, and in any sequence of
    neighbouring windows.
    """
    counts = [len(windows_NT) for windows_NT in parts]
    held_out = apportioned(math.ceil(sum(counts) / HELD_OUT), counts)
    fitting = [count - held for count, held in zip(counts, held_out, strict=True)]
    held_out_parts = iter(_spread(held_out))
    fitting_parts = iter(_spread(fitting))
    windows = [iter(windows_NT) for windows_NT in parts]
    order = list[Tensor]()
    for i in range(sum(counts)):
        part = next(fitting_parts if i % HELD_OUT else held_out_parts)
        order.append(next(windows[part]))
    return torch.stack(order)


def _spread(counts: Sequence[int]) -> list[int]:
    """Return a list with counts[i] copies of each index i, spread evenly over the list."""
    positions = list[tuple[float, int]]()
    for part, count in enumerate(counts):
        for k in range(count):
            positions.append(((k + 0.5) / count, part))
    return [part for _, part in sorted(positions)]


def split_windows(windows: W) -> tuple[W, W]:
    """Split windows (N, …) into windows for fitting, and held-out windows (every fifth window)."""
    return windows[torch.arange(len(windows)) % HELD_OUT > 0], windows[::HELD_OUT]
