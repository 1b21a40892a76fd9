"""Token windows with their token mask, which says which tokens count.

The model reads all tokens of a window. Statistics are collected at the tokens that count, and
models are compared by their predictions of these tokens. In texts with answers, the tokens of
answers may be the only ones that count. Tokens that pad a short window never count.

Legend: N windows · T tokens per window · P positions of all windows, window after window.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FEW = 32  # tokens; fewer tokens of answers would make a judgement depend on chance


@dataclass(frozen=True, eq=False)
class Batch:
    """Token windows of one length, and which of their tokens count."""

    tokens_NT: Tensor
    mask_NT: Tensor  # the token mask: true for tokens that count

    @classmethod
    def of(cls, tokens_NT: Tensor) -> "Batch":
        """Return windows in which all tokens count."""
        return cls(tokens_NT, torch.ones_like(tokens_NT, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def __getitem__(self, index: Any) -> "Batch":
        """Return the part of the tokens, and of the mask, that an index of tensors selects."""
        return Batch(self.tokens_NT[index], self.mask_NT[index])

    def split(self, size: int) -> list["Batch"]:
        """Return batches of this many windows. The last batch may have fewer."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def numel(self) -> int:
        """Return the number of all tokens."""
        return self.tokens_NT.numel()

    @property
    def mask_P(self) -> Tensor | None:
        """The mask of all positions, or None if all tokens count and nothing has to be selected."""
        return None if self.mask_NT.all() else self.mask_NT.flatten()

    @property
    def predicted_P(self) -> Tensor | None:
        """The positions that predict a token which counts. None if all tokens count.

        The token after the last one of a window is not known. Its position has the mask of the last
        token.
        """
        if self.mask_NT.all():
            return None
        return torch.cat([self.mask_NT[:, 1:], self.mask_NT[:, -1:]], dim=1).flatten()


def judged(batch: Batch, text_N: Tensor) -> Batch:
    """Return the windows with the mask of the tokens by which a model is judged.

    A text with fewer than FEW tokens of answers is judged by all its tokens.

    text_N: the number of the text of each window.
    """
    mask_NT = batch.mask_NT.clone()
    for text in text_N.unique():
        predicted_P = batch[text_N == text].predicted_P
        if predicted_P is not None and predicted_P.sum() < FEW:
            mask_NT[text_N == text] = True
    return Batch(batch.tokens_NT, mask_NT)
