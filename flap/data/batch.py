"""Token windows with a token mask, which says which tokens are counted.

The model reads all tokens of a window. Statistics are collected only at counted tokens, and models
are compared by their predictions of counted tokens. In texts with answers, possibly only the tokens
of answers are counted. Padding is never counted.

Legend: N windows · T tokens per window · P positions of all windows, window after window.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FEW = 32  # minimum tokens of answers in a text, because measuring on fewer tokens is too noisy


@dataclass(frozen=True, eq=False)
class Batch:
    """Token windows of one length, with a mask of the counted tokens."""

    tokens_NT: Tensor
    mask_NT: Tensor  # the token mask: true for counted tokens

    @classmethod
    def of(cls, tokens_NT: Tensor) -> "Batch":
        """Return windows in which all tokens are counted."""
        return cls(tokens_NT, torch.ones_like(tokens_NT, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def __getitem__(self, index: Any) -> "Batch":
        """Index the tokens and the mask in the same way as a tensor."""
        return Batch(self.tokens_NT[index], self.mask_NT[index])

    def split(self, size: int) -> list["Batch"]:
        """Split into batches of this many windows. The last batch may have fewer."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def numel(self) -> int:
        """Return the number of all tokens."""
        return self.tokens_NT.numel()

    @property
    def mask_P(self) -> Tensor | None:
        """The mask of all positions; None if all tokens are counted."""
        return None if self.mask_NT.all() else self.mask_NT.flatten()

    @property
    def predicted_P(self) -> Tensor | None:
        """The mask of the positions that predict a counted token; None if all tokens are counted.

        The last position of a window predicts an unknown token. This position gets the mask of the
        last token.
        """
        if self.mask_NT.all():
            return None
        return torch.cat([self.mask_NT[:, 1:], self.mask_NT[:, -1:]], dim=1).flatten()


def judged(batch: Batch, text_N: Tensor) -> Batch:
    """Return the windows with a mask of the tokens on which a model is measured.

    If a text has fewer than FEW tokens of answers, a model is measured on all of its tokens.

    text_N: the index of the text of each window.
    """
    mask_NT = batch.mask_NT.clone()
    for text in text_N.unique():
        predicted_P = batch[text_N == text].predicted_P
        if predicted_P is not None and predicted_P.sum() < FEW:
            mask_NT[text_N == text] = True
    return Batch(batch.tokens_NT, mask_NT)
