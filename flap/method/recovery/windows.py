"""The windows of recovery: the first ones are held out, the others are trained on in their order."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.data import Windows, split_windows
from flap.data.dialogue import GIVEN, Answers
from flap.data.read_windows import Wanted, read_windows
from flap.method.recovery.base import Recovery


def recovery_windows(
    recovery: Recovery,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    bos: str,
    seed: int,
    answers: Answers = GIVEN,
) -> Windows:
    """Return the windows, all of one length. max_length: the model's context in tokens; others: see `calibration`.

    Raises:
        ValueError: there is no such text, it is too short, or the windows are longer than the model's context.
    """
    wanted = Wanted(recovery.windows + recovery.held_out, recovery.seq_len, seed, bos, answers)
    return read_windows("recover", recovery.dataset, tokenizer, wanted, max_length)


def training_windows(recovery: Recovery, windows: Windows, own: Windows | None = None) -> Tensor:
    """Return the windows of a training, tokens_NT, of which the first ones are held out.

    own: the same with the answers of the pruned model, which it is trained on: it meets its own mistakes, and learns
    what the dense model predicts after them. What is held out has the dense model's answers.
    """
    tokens_NT = _held_out_first(recovery, windows)
    if own is not None:
        every = 2 if recovery.writer == "both" else 1
        tokens_NT[recovery.held_out :: every] = _held_out_first(recovery, own)[recovery.held_out :: every]
    return tokens_NT


def _held_out_first(recovery: Recovery, windows: Windows) -> Tensor:
    if recovery.use == "recovery":
        return windows.tokens_NT
    fitting_NT, held_out_NT = split_windows(windows.tokens_NT)
    return torch.cat([held_out_NT, fitting_NT])
