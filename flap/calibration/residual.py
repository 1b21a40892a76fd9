"""The power of the residual stream at a decoder layer, which says how much an output error matters there.

Legend: T tokens · D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flap.models.devices import widest_float


class ResidualRecorder:
    """A forward pre-hook of a decoder layer that sums 1 / ‖h_t‖² over the tokens t of its input hidden states h."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.num_tokens: Tensor | int = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        hidden_TD = args[0].flatten(end_dim=-2).float()
        inverse_T = torch.linalg.vector_norm(hidden_TD, dim=-1).square().reciprocal()
        finite_T = torch.isfinite(inverse_T)  # not where h_t is zero: an error relative to it is not defined
        self.total = self.total + torch.where(finite_T, inverse_T, 0.0).to(widest_float(inverse_T.device)).sum()
        self.num_tokens = self.num_tokens + finite_T.sum()


def inverse_power(recorders: Sequence[ResidualRecorder]) -> float:
    """Return E[1 / ‖h_t‖²] over all recorded tokens, in float32 precision; 0 if every hidden state is zero.

    E‖e‖² · E[1 / ‖h‖²] is the squared error of a block's output relative to the residual stream of an ordinary token.
    E‖e‖² / E‖h‖² is not: a few tokens, mostly the first of a window, have massive activations that later layers only
    pass on, so that E‖h‖² can be 240 times its value over the other tokens (layer 12 of SmolLM2-135M).
    """
    total, num_tokens = sum(float(r.total) for r in recorders), sum(int(r.num_tokens) for r in recorders)
    return torch.tensor(total / max(num_tokens, 1), dtype=torch.float32).item()
