"""Cut a text into token windows for calibration and evaluation.

Legend: N windows · T tokens in each window.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.config import require
from flap.data.texts import Text

BOS = ("auto", "true", "false")


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


def calibration_windows(
    text: Text, tokenizer: PreTrainedTokenizerBase, num_samples: int, seq_len: int, seed: int, bos: bool = False
) -> Tensor:
    """Return `num_samples` windows of the text as tokens_NT (int64): non-overlapping, chosen at random by the seed.

    Raises:
        ValueError: the text has fewer than `num_samples` windows.
    """
    tokens_NT = _cut(text, tokenizer, seq_len, bos, "calibration.dataset")
    if len(tokens_NT) < num_samples:
        raise ValueError(
            f"calibration.dataset={text.name}: {len(tokens_NT)} windows of {seq_len} tokens are too few for "
            f"calibration.num_samples={num_samples}; lower it, or calibration.seq_len, or take a longer text"
        )
    order = torch.randperm(len(tokens_NT), generator=torch.Generator().manual_seed(seed))
    return tokens_NT[order[:num_samples]]


def evaluation_windows(
    text: Text, tokenizer: PreTrainedTokenizerBase, seq_len: int, max_tokens: int | None, bos: bool = False
) -> Tensor:
    """Return the first windows of the text, in order, as tokens_NT (int64). max_tokens: at most this many; None: all.

    Raises:
        ValueError: the text is shorter than one window.
    """
    tokens_NT = _cut(text, tokenizer, seq_len, bos, "eval.perplexity.datasets")
    return tokens_NT if max_tokens is None else tokens_NT[: max(1, max_tokens // seq_len)]


def tokens_sha256(tokens_NT: Tensor) -> str:
    """Return the SHA-256 of token windows, in hex digits: it depends on text, tokenizer, number, length and order."""
    return hashlib.sha256(tokens_NT.numpy().tobytes() + str(tuple(tokens_NT.shape)).encode()).hexdigest()


@lru_cache(maxsize=4)  # in a sweep in one process, a text is tokenized only once
def _cut(text: Text, tokenizer: PreTrainedTokenizerBase, seq_len: int, bos: bool, field: str) -> Tensor:
    """Tokenize the whole text and cut it into windows of `seq_len` tokens; the incomplete last one is left out.

    bos: every window begins with that token, which counts. Else the text is tokenized as it is and only the first
    window begins with what the tokenizer puts there: the habit of the papers.
    """
    tokens = torch.tensor(tokenizer(text.text, verbose=False, add_special_tokens=not bos).input_ids)
    own = seq_len - bos
    if len(tokens) < own:
        raise ValueError(f"{field}={text.name}: its {len(tokens)} tokens do not fill one window of {seq_len}")
    windows_NT = tokens[: len(tokens) // own * own].reshape(-1, own)
    if not bos:
        return windows_NT
    return torch.cat([torch.full((len(windows_NT), 1), tokenizer.bos_token_id), windows_NT], dim=1)
