"""The windows of recovery: the first ones are held out, the others are trained on in their order."""

import torch
from torch import Tensor

from flap.data import Windows, split_windows
from flap.data.counted import judged
from flap.method.recovery.base import Recovery


def training_windows(recovery: Recovery, windows: Windows, own: Windows | None = None) -> Tensor:
    """Return the windows of a training, tokens_NT, of which the first ones are held out.

    own: the same with the answers of the pruned model, which it is trained on: it meets its own mistakes, and learns
    what the dense model predicts after them. What is held out has the dense model's answers, and by these it judges.
    """
    tokens_NT, first = _held_out_first(recovery, windows.tokens_NT), recovery.held_out
    held_out_NT = _held_out_first(recovery, windows.marked_NT)[:first]
    tokens_NT[:first] = judged(held_out_NT, torch.zeros(len(held_out_NT)))
    if own is not None:
        every = 2 if recovery.writer == "both" else 1
        tokens_NT[first::every] = _held_out_first(recovery, own.tokens_NT)[first::every]
    return tokens_NT


def _held_out_first(recovery: Recovery, tokens_NT: Tensor) -> Tensor:
    if recovery.use == "recovery":
        return tokens_NT
    fitting_NT, held_out_NT = split_windows(tokens_NT)
    return torch.cat([held_out_NT, fitting_NT])
