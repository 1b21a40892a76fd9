"""Token windows with a mask that marks the *counted* tokens.

The model reads all tokens of a window, but calibration collects statistics only at counted tokens,
and two models are compared only by their predictions of counted tokens. In a text of prompts with
answers, the option `calibration.count` decides whether all tokens are counted, or only the tokens
of the answers. Padding is never counted.

Legend: N: windows · T: tokens per window · P: positions in the flattened windows, P = N · T.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# If the windows of a text together have fewer than FEW counted tokens, models are compared on all
# tokens of these windows instead, because a measurement on so few tokens is too noisy.
FEW = 32


@dataclass(frozen=True, eq=False)
class Batch:
    """Token windows of equal length, with a mask that is true for counted tokens."""

    tokens_NT: Tensor
    mask_NT: Tensor  # boolean, true for counted tokens

    @classmethod
    def of(cls, tokens_NT: Tensor) -> "Batch":
        """Return a batch of the given windows in which all tokens are counted."""
        return cls(tokens_NT, torch.ones_like(tokens_NT, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def __getitem__(self, index: Any) -> "Batch":
        return Batch(self.tokens_NT[index], self.mask_NT[index])

    def split(self, size: int) -> list["Batch"]:
        """Split the windows into batches of `size` windows; the last batch may be smaller."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def numel(self) -> int:
        """Return the number of tokens in all windows, including tokens that are not counted."""
        return self.tokens_NT.numel()

    @property
    def mask_P(self) -> Tensor | None:
        """The flattened token mask; None if all tokens are counted."""
        return None if self.mask_NT.all() else self.mask_NT.flatten()

    @property
    def predicted_P(self) -> Tensor | None:
        """A mask of the positions whose next token is counted; None if all tokens are counted.

        The last position of a window has no next token. There, the mask says whether the last token
        itself is counted.
        """
        if self.mask_NT.all():
            return None
        return torch.cat([self.mask_NT[:, 1:], self.mask_NT[:, -1:]], dim=1).flatten()


def judged(batch: Batch, text_N: Tensor) -> Batch:
    """Return the windows of a batch with a mask of the tokens on which models are compared.

    Usually, models are compared on the counted tokens. But if the windows of a text together
    contain fewer than FEW counted tokens, models are compared on all tokens of these windows.

    text_N: for each window, the index of the text that the window was cut from.
    """
    mask_NT = batch.mask_NT.clone()
    for text in text_N.unique():
        predicted_P = batch[text_N == text].predicted_P
        if predicted_P is not None and predicted_P.sum() < FEW:
            mask_NT[text_N == text] = True
    return Batch(batch.tokens_NT, mask_NT)
