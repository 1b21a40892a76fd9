"""Which tokens of windows count: all, or those of the answers. One that may not is marked where it stands.

A marked token is stored as -1 - token, so that windows with marks are drawn, shared and stored as all others are.
Legend: N windows · T tokens a window · P positions of all windows.
"""

import torch
from torch import Tensor

FEW = 32  # tokens; a handful would decide by chance


def marked(tokens: Tensor, counted: Tensor) -> Tensor:
    """Return tokens of which those that do not count are marked."""
    return torch.where(counted, tokens, -1 - tokens)


def unmarked(tokens: Tensor) -> Tensor:
    """Return the tokens without marks."""
    return torch.where(tokens < 0, -1 - tokens, tokens)


def counted_positions(tokens_NT: Tensor) -> Tensor | None:
    """Return which positions have a token that counts, counted_P; None: all."""
    return None if (tokens_NT >= 0).all() else (tokens_NT >= 0).flatten()


def counted_predictions(tokens_NT: Tensor) -> Tensor | None:
    """Return at which positions a token that counts is predicted, the next one, counted_P; None: everywhere.

    What follows the last token of a window is not known: it counts if that token does.
    """
    if (tokens_NT >= 0).all():
        return None
    return torch.cat([tokens_NT[:, 1:], tokens_NT[:, -1:]], dim=1).flatten() >= 0


def judged(tokens_NT: Tensor, text_N: Tensor) -> Tensor:
    """Return windows to judge by, tokens_NT: a text with fewer than FEW tokens of answers, by all its tokens."""
    tokens_NT = tokens_NT.clone()
    for x in text_N.unique():
        counted_P = counted_predictions(tokens_NT[text_N == x])
        if counted_P is not None and counted_P.sum() < FEW:
            tokens_NT[text_N == x] = unmarked(tokens_NT[text_N == x])
    return tokens_NT
