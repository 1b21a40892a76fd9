"""Marks of tokens: which tokens of windows are part of answers.

A token that is not part of an answer is stored as -1 - token. So windows with marks are drawn,
shared and stored in the same way as windows without them.

Legend: N windows · T tokens per window · P positions of all windows.
"""

import torch
from torch import Tensor

FEW = 32  # tokens; fewer tokens of answers would make a judgement depend on chance


def marked(tokens: Tensor, counted: Tensor) -> Tensor:
    """Mark the tokens at which `counted` is false."""
    return torch.where(counted, tokens, -1 - tokens)


def unmarked(tokens: Tensor) -> Tensor:
    """Return the tokens without marks."""
    return torch.where(tokens < 0, -1 - tokens, tokens)


def counted_positions(tokens_NT: Tensor) -> Tensor | None:
    """Return a mask of the tokens without a mark, counted_P. Return None if no token is marked."""
    return None if (tokens_NT >= 0).all() else (tokens_NT >= 0).flatten()


def counted_predictions(tokens_NT: Tensor) -> Tensor | None:
    """Return a mask of the positions that predict a token without a mark, counted_P.

    The token after the last one of a window is not known. Its position counts if the last token has
    no mark. Return None if no token is marked.
    """
    if (tokens_NT >= 0).all():
        return None
    return torch.cat([tokens_NT[:, 1:], tokens_NT[:, -1:]], dim=1).flatten() >= 0


def judged(tokens_NT: Tensor, text_N: Tensor) -> Tensor:
    """Return the windows to judge a model by, tokens_NT.

    If a text has fewer than FEW tokens of answers, its marks are removed, so that it is judged by
    all its tokens.

    text_N: the number of the text of each window.
    """
    tokens_NT = tokens_NT.clone()
    for text in text_N.unique():
        counted_P = counted_predictions(tokens_NT[text_N == text])
        if counted_P is not None and counted_P.sum() < FEW:
            tokens_NT[text_N == text] = unmarked(tokens_NT[text_N == text])
    return tokens_NT
