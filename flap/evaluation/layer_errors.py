"""Where by layer the error of a pruned model arises: that of the hidden states after each layer.

Legend: N windows · T tokens in each window · D hidden size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flap.models import PlacedModel
from flap.storage import NOT_KEPT

TOKENS = 256  # enough for a picture; the hidden states of all layers are in memory


def first_tokens(batch_NT: Tensor) -> Tensor:
    """Return the first windows of a batch, TOKENS tokens in all; a longer window is cut."""
    return batch_NT[: max(1, TOKENS // batch_NT.shape[1]), :TOKENS]


def layer_outputs(model: PlacedModel, tokens_NT: Tensor) -> list[Tensor]:
    """Return the hidden states after each layer, on the host."""
    outputs: list[Tensor] = []
    _observe(model, tokens_NT, lambda hidden_NTD: outputs.append(hidden_NTD.cpu()))
    return outputs


def layer_errors(model: PlacedModel, dense: Sequence[Tensor], tokens_NT: Tensor) -> list[float | None]:
    """Return ‖h - h_dense‖ / ‖h_dense‖ after each layer, the mean over tokens; 0 = no change, None = not finite.

    dense: the dense model's hidden states h_dense after each layer. The error is what all layers so far have added.
    """
    states, errors = iter(dense), list[float]()

    def compare(hidden_NTD: Tensor) -> None:
        dense_NTD, pruned_NTD = next(states).float(), hidden_NTD.cpu().float()
        errors.append(((pruned_NTD - dense_NTD).norm(dim=-1) / dense_NTD.norm(dim=-1)).mean().item())

    _observe(model, tokens_NT, compare)
    return [error if math.isfinite(error) else None for error in errors]


def _observe(model: PlacedModel, tokens_NT: Tensor, take: Callable[[Tensor], None]) -> None:
    """Call `take` with the output of each layer, first to last."""
    watches = [_watched(layer, take) for layer in model.layers]
    for _ in model.observe([tokens_NT], watches, NOT_KEPT, "layer errors"):
        pass


@contextmanager
def _watched(layer: nn.Module, take: Callable[[Tensor], None]) -> Iterator[None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        take(output if isinstance(output, Tensor) else output[0])

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
