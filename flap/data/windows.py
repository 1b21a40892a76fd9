"""Cut a text into token windows for calibration and evaluation.

Legend: N windows · T tokens in each window.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.data.texts import Text


def calibration_windows(
    text: Text, tokenizer: PreTrainedTokenizerBase, num_samples: int, seq_len: int, seed: int
) -> Tensor:
    """Return `num_samples` windows of the text as tokens_NT (int64): non-overlapping, chosen at random by the seed.

    Raises:
        ValueError: the text has fewer than `num_samples` windows.
    """
    tokens_NT = _cut(text, tokenizer, seq_len, "calibration.dataset")
    if len(tokens_NT) < num_samples:
        raise ValueError(
            f"calibration.dataset={text.name}: {len(tokens_NT)} windows of {seq_len} tokens are too few for "
            f"calibration.num_samples={num_samples}; lower it, or calibration.seq_len, or take a longer text"
        )
    order = torch.randperm(len(tokens_NT), generator=torch.Generator().manual_seed(seed))
    return tokens_NT[order[:num_samples]]


def evaluation_windows(text: Text, tokenizer: PreTrainedTokenizerBase, seq_len: int, max_tokens: int | None) -> Tensor:
    """Return the first windows of the text, in order, as tokens_NT (int64). max_tokens: at most this many; None: all.

    Raises:
        ValueError: the text is shorter than one window.
    """
    tokens_NT = _cut(text, tokenizer, seq_len, "eval.perplexity.datasets")
    return tokens_NT if max_tokens is None else tokens_NT[: max(1, max_tokens // seq_len)]


def tokens_sha256(tokens_NT: Tensor) -> str:
    """Return the SHA-256 of token windows, in hex digits: it depends on text, tokenizer, number, length and order."""
    return hashlib.sha256(tokens_NT.numpy().tobytes() + str(tuple(tokens_NT.shape)).encode()).hexdigest()


@lru_cache(maxsize=4)  # in a sweep in one process, a text is tokenized only once
def _cut(text: Text, tokenizer: PreTrainedTokenizerBase, seq_len: int, field: str) -> Tensor:
    """Tokenize the whole text and cut it into windows of `seq_len` tokens; the incomplete last one is left out."""
    tokens = torch.tensor(tokenizer(text.text, verbose=False).input_ids)
    if len(tokens) < seq_len:
        raise ValueError(f"{field}={text.name}: its {len(tokens)} tokens do not fill one window of {seq_len}")
    return tokens[: len(tokens) // seq_len * seq_len].reshape(-1, seq_len)
