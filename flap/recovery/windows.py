"""The windows of recovery: the first HELD_OUT_WINDOWS are not trained on, the others once, in their order."""

from transformers import PreTrainedTokenizerBase

from flap.data import Windows
from flap.data.read_windows import Wanted, read_windows
from flap.data.window_pool import TooFewWindowsError
from flap.recovery.base import HELD_OUT_WINDOWS, Recovery


def recovery_windows(
    recovery: Recovery, tokenizer: PreTrainedTokenizerBase, max_length: int | None, bos: str, seed: int
) -> Windows:
    """Return the windows, all of one length. max_length: the model's context in tokens. bos: see `calibration.bos`.

    Raises:
        ValueError: there is no such text, it is too short, or the windows are longer than the model's context.
    """
    count, seq_len = recovery.steps * recovery.batch_size + HELD_OUT_WINDOWS, recovery.seq_len
    try:
        return read_windows("recover", recovery.dataset, tokenizer, Wanted(count, [seq_len], seed, bos), max_length)
    except ValueError as error:
        if not isinstance(few := error.__cause__, TooFewWindowsError):
            raise
        raise ValueError(
            f"recover.tokens={recovery.tokens}: takes {few.wanted} windows of {seq_len} tokens, "
            f"{HELD_OUT_WINDOWS} of all for evaluation, of a text that has {few.available}; "
            "lower it, or name a longer recover.dataset"
        ) from error
