"""Reading the texts of a mixture: by name, from files, or as yet to be written by the model."""

from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from flap.calibration.sampling import beginning, check_template
from flap.data import SELF, Part, Text, Windows, begins_with_bos, parse, read_text


def read_windows(
    section: str,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int,
    lengths: list[int],
    seed: int,
    bos: str,
    max_length: int | None,
) -> Windows:
    """Return the windows of a mixture. section: of the config, as "calibration", for error messages.

    dataset, bos: as of the config. max_length: the model's context in tokens; None: unlimited.

    Raises:
        ValueError: there is no such text, it has too few tokens, or the windows are longer than the model's context.
    """
    check_context(section, lengths, max_length)
    parts = tuple(parse(dataset, f"{section}.dataset"))
    texts = tuple(_text(part, tokenizer, f"{section}.dataset") for part in parts)
    begins = begins_with_bos(tokenizer, bos, "calibration.bos")
    windows = Windows(parts, texts, tokenizer, num_samples, tuple(lengths), seed, begins, section)
    _ = windows.drawn  # fails if a text is too short
    return windows


def check_context(section: str, lengths: list[int], max_length: int | None) -> None:
    """Check that windows fit the model's context.

    Raises:
        ValueError: they do not.
    """
    if max_length is not None and (longest := max(lengths)) > max_length:
        raise ValueError(f"{section}.seq_len={longest}: the model's context ends at {max_length} tokens")


def _text(part: Part, tokenizer: PreTrainedTokenizerBase, field: str) -> Text | None:
    """Return the text of a part; None if the model writes it.

    Raises:
        ValueError: there is no such text, or the tokenizer lacks what it takes.
    """
    where = f"{field}.{part.dataset}"
    if part.dataset == SELF:
        beginning(tokenizer, part.chat_template, where)
        return None
    if not part.chat_template:
        return read_text(part.dataset, "calibration", field)
    check_template(tokenizer, where)
    return read_text(part.dataset, "calibration", field, partial(tokenizer.apply_chat_template, tokenize=False))
