"""Compute a model's predictions on batches of windows, which are divided among the processes.

Callers compute logits for one chunk of positions at a time, because the logits of a whole batch may
be larger than the model.

Legend: N: windows (token sequences) · T: tokens in each window · D: hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from flap.models.placed_model import PlacedModel
from flap.runtime import ranks
from flap.runtime.progress import shared_out

T = TypeVar("T")

LOGITS_BYTES = 2**28  # maximum size of the float32 logits of a chunk of positions, in bytes


def positions_per_chunk(vocab_size: int) -> int:
    """Return the number of positions whose float32 logits fit into LOGITS_BYTES."""
    return max(1, LOGITS_BYTES // (4 * vocab_size))


def shared_hidden_states(model: PlacedModel, batches_NT: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the final hidden states of each batch that this process runs."""
    return model.hidden_states(ranks.own_share(batches_NT))


def map_batches(
    model: PlacedModel,
    batches_NT: Sequence[Tensor],
    stage: str,
    function: Callable[[Tensor, Tensor], T],
) -> list[T]:
    """Call a function for each batch, and return the results in the order of the batches.

    The batches are divided among the processes, and each process gets all results.

    function: a function of the tokens (N, T) and the final hidden states (N, T, D) of a batch. The
        weights of the LM head are loaded while the function runs.
    stage: the label of the progress bar.
    """
    states = shared_hidden_states(model, batches_NT)

    def result(batch_NT: Tensor) -> T:
        return function(batch_NT, next(states))

    return shared_out(batches_NT, stage, result, Tensor.numel)
