"""Drawing windows from texts by weight, and the order in which every fifth of them is held out.

Legend: N windows · T tokens in each window · S tokens of a text.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import uuid4

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from flap.data.counted import marked, unmarked
from flap.data.text import Text

# With covariances, every fifth window is held out to choose between fits.
HELD_OUT = 5


class Pool:
    """The tokens of a text, from which windows are drawn that do not overlap.

    A window may go on in the next document. bos: every window begins with that token, which counts. Else the text is
    tokenized as it is and only its first window begins with what the tokenizer puts there: the habit of the papers.
    """

    def __init__(self, text: Text, tokenizer: PreTrainedTokenizerBase, bos: bool) -> None:
        self.tokens_S = tokenized(text, tokenizer, bos)
        self.bos_token: int | None = tokenizer.bos_token_id if bos else None
        self.counted_apart = bool(text.counted) and tokenizer.is_fast  # BOS is no answer

    def cut(self, seq_len: int) -> Tensor:
        """Return all windows of so many tokens, tokens_NT (int64), in order."""
        return self._windows(self._places(seq_len))

    def draw(self, num_windows: int, seq_len: int, seed: int) -> Tensor:
        """Return windows that are chosen at random by the seed; all of them where there are no more."""
        places_NT = self._places(seq_len)
        order_N = torch.randperm(len(places_NT), generator=torch.Generator().manual_seed(seed))
        return self._windows(places_NT[order_N[:num_windows]])

    def _places(self, seq_len: int) -> Tensor:
        """Return the positions in the text of the tokens of all windows; BOS has none."""
        own = seq_len - (self.bos_token is not None)
        return torch.arange(len(self.tokens_S) // own * own).view(-1, own)

    def _windows(self, places_NT: Tensor) -> Tensor:
        tokens_NT = self.tokens_S[places_NT]
        if self.bos_token is None:
            return tokens_NT
        return pad(
            tokens_NT, (1, 0), value=-1 - self.bos_token if self.counted_apart else self.bos_token
        )


@dataclass(frozen=True)
class _State:
    """A tokenizer as it is now: two are equal if they make the same tokens of every text."""

    digest: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False)


def tokenized(text: Text, tokenizer: PreTrainedTokenizerBase, bos: bool) -> Tensor:
    """Return the tokens of a text, tokens_S."""
    # what one that is not fast does is in its code, which nothing tells from other code
    content = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else uuid4().hex
    digest = hashlib.sha256(f"{tokenizer.bos_token_id} {content}".encode()).hexdigest()
    return _tokenized(text, _State(digest, tokenizer), bos)


@lru_cache(maxsize=8)  # in a sweep in one process, a text is tokenized only once
def _tokenized(text: Text, state: _State, bos: bool) -> Tensor:
    """Return the tokens of a text, those marked that are no answer where it has answers (`flap.data.counted`).

    A BOS of its own, as of a chat template, does not come behind another one.
    """
    tokenizer = state.tokenizer
    counted = text.counted_in_text if state.tokenizer.is_fast else []
    options = {
        "verbose": False,
        "add_special_tokens": not bos,
        "return_offsets_mapping": bool(counted),
    }
    encoded = tokenizer(text.text, **options)
    ids_S = torch.tensor(encoded.input_ids).long()
    if counted:
        first_S, end_S = torch.tensor(encoded.offset_mapping).long().reshape(-1, 2).T.contiguous()
        starts, ends = map(torch.tensor, zip(*counted, strict=True))
        span_S = (
            torch.searchsorted(starts, first_S, right=True) - 1
        )  # the last one that begins before the token does
        ids_S = marked(ids_S, (span_S >= 0) & (first_S < ends[span_S]) & (end_S > first_S))
    doubled = [tokenizer.bos_token_id] * (1 if bos else 2)
    return ids_S[1:] if unmarked(ids_S)[: len(doubled)].tolist() == doubled else ids_S


def apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """Return whole numbers with this sum in proportion to the weights, by largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda p: shares[p] - exact[p])
    for p in by_remainder[: total - sum(shares)]:
        shares[p] += 1
    return shares


def mixed(parts: Sequence[Tensor]) -> Tensor:
    """Return the windows of all parts in one order, tokens_NT; each part keeps its own order.

    The held-out windows, and those that are not, have the parts in proportion, and so has each run of either.
    """
    counts = [len(windows_NT) for windows_NT in parts]
    held_out = apportioned(math.ceil(sum(counts) / HELD_OUT), counts)
    fitting = [count - held for count, held in zip(counts, held_out, strict=True)]
    held_parts = _spread(held_out)
    fitting_parts = _spread(fitting)
    windows = [iter(windows_NT) for windows_NT in parts]
    order = (next(fitting_parts if i % HELD_OUT else held_parts) for i in range(sum(counts)))
    return torch.stack([next(windows[p]) for p in order])


def _spread(counts: Sequence[int]) -> Iterator[int]:
    """Yield the index of each part as often as its count says, evenly spread."""
    return iter(
        [p for _, p in sorted(((k + 0.5) / n, p) for p, n in enumerate(counts) for k in range(n))]
    )


def split_windows(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the windows (N, …) to fit on, and those that are held out to choose between fits."""
    return windows[torch.arange(len(windows)) % HELD_OUT > 0], windows[::HELD_OUT]
