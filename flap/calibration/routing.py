"""How much the router of a mixture makes of each expert, which says how much an error of that expert matters.

Legend: T tokens · E experts.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flap.models import ExpertsBlock
from flap.models.devices import widest_float


class RoutingRecorder:
    """A forward pre-hook of a layer's experts that sums the squares of the router's weights over the tokens."""

    def __init__(self, block: ExpertsBlock) -> None:
        self.block = block
        self.total: Tensor | float = 0.0
        self.num_tokens = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        weight_TE = self.block.router_weights(args)
        self.total = self.total + weight_TE.square().to(widest_float(weight_TE.device)).sum(dim=0)
        self.num_tokens += len(weight_TE)


def routed_power(recorders: Sequence[RoutingRecorder]) -> tuple[float, ...]:
    """Return E[w_e²] of each expert e over all recorded tokens, in float32 precision; empty without experts.

    w_e is the router's weight of the expert's output, 0 for a token that is sent to others. E[w_e²] · E‖e‖² is the
    squared error of the layer's output that an error e of the expert's output makes, if it is independent of w_e.
    """
    num_tokens = sum(recorder.num_tokens for recorder in recorders)
    if not num_tokens:
        return ()
    total_E = sum(recorder.total for recorder in recorders)
    assert isinstance(total_E, Tensor)
    return tuple((total_E / num_tokens).float().tolist())
