"""How much an error weighs in the residual stream that a decoder layer writes into.

Legend: T tokens · D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flap.calibration.statistics import ACCUMULATOR


class ResidualRecorder:
    """Forward pre-hook of a decoder layer: sums 1 / ‖h_t‖² over the tokens t of the hidden states h that flow in."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.num_tokens: Tensor | int = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        hidden_TD = args[0].flatten(end_dim=-2).float()
        inverse_T = torch.linalg.vector_norm(hidden_TD, dim=-1).square().reciprocal()
        seen_T = torch.isfinite(inverse_T)  # relative to a hidden state of zeros no error is defined
        wide = torch.float32 if inverse_T.device.type == "mps" else ACCUMULATOR  # mps has no float64
        self.total = self.total + torch.where(seen_T, inverse_T, 0.0).to(wide).sum()
        self.num_tokens = self.num_tokens + seen_T.sum()


def inverse_power(recorders: Sequence[ResidualRecorder]) -> float:
    """E[1 / ‖h_t‖²] over all tokens that the recorders saw, to float32; 0 where every hidden state was zero.

    E‖e‖² · E[1 / ‖h‖²] is the squared error of a block's output relative to the residual stream of an ordinary token.
    E‖e‖² / E‖h‖² is not: a handful of tokens, the first of a window above all, have massive activations that the layers
    behind them only carry along, and E‖h‖² can be 240 times what the other tokens have (layer 12 of SmolLM2-135M).
    """
    total, num_tokens = sum(float(r.total) for r in recorders), sum(int(r.num_tokens) for r in recorders)
    return torch.tensor(total / max(num_tokens, 1), dtype=torch.float32).item()
