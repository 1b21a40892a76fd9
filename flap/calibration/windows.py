"""Reading the texts of a mixture: by name, from files, or as yet to be written by the model."""

import sys
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.calibration.sampling import beginning, check_template, without_bos
from flap.data import SELF, Part, Text, Windows, begins_with_bos, parse, read_text


class Wanted(NamedTuple):
    """The windows to draw: how many, of which lengths in tokens, with which seed; bos: as of the config."""

    num_samples: int
    lengths: list[int]
    seed: int
    bos: str


def read_windows(
    section: str,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Wanted,
    max_length: int | None,
) -> Windows:
    """Return the windows of a mixture. section: of the config, as "calibration", for error messages.

    dataset: as of the config. max_length: the model's context in tokens; None: unlimited.

    Raises:
        ValueError: there is no such text, it has too few tokens, or the windows are longer than the model's context.
    """
    check_context(section, wanted.lengths, max_length)
    parts = tuple(parse(dataset, f"{section}.dataset"))
    begins = begins_with_bos(tokenizer, wanted.bos, "calibration.bos")
    texts = tuple(_text(part, tokenizer, f"{section}.dataset", begins) for part in parts)
    windows = Windows(parts, texts, tokenizer, wanted.num_samples, tuple(wanted.lengths), wanted.seed, begins, section)
    check_shares(windows)
    check_own_text(windows, max_length)
    _ = windows.drawn  # fails if a text is too short
    return windows


def check_shares(windows: Windows) -> None:
    """Check that each text has a window.

    Raises:
        ValueError: the weight of one is too small.
    """
    counts = [windows.counts(seq_len) for seq_len in windows.lengths]
    for part, *shares in zip(windows.parts, *counts, strict=True):
        if not any(shares):
            raise ValueError(
                f"{windows.field}.dataset.{part.dataset}={part.weight:g}: its share of {sum(map(sum, counts))} windows "
                "is none; expected a larger weight, more windows, or to leave it out"
            )


def check_own_text(windows: Windows, max_length: int | None) -> None:
    """Check that the model can begin a text, if it writes one, and that without packing a sequence holds a window.

    Raises:
        ValueError: the tokenizer lacks what it takes, or the beginning leaves too little of the context.
    """
    part = windows.to_write
    if part is None:
        return
    start = beginning(windows.tokenizer, part.chat_template, f"{windows.field}.dataset.{SELF}")
    room = (max_length or sys.maxsize) - (0 if start.special else len(start.tokens))
    if not part.packing and windows.own_length > room:
        raise ValueError(
            f"{windows.field}.seq_len={max(windows.lengths)}: of a sequence that the model writes {room} tokens are "
            f"left beside what it begins with; expected at most {room + windows.bos}, or {SELF} without packing: false"
        )


def check_context(section: str, lengths: list[int], max_length: int | None) -> None:
    """Check that windows fit the model's context.

    Raises:
        ValueError: they do not.
    """
    if max_length is not None and (longest := max(lengths)) > max_length:
        raise ValueError(f"{section}.seq_len={longest}: the model's context ends at {max_length} tokens")


def _text(part: Part, tokenizer: PreTrainedTokenizerBase, field: str, bos: bool) -> Text | None:
    """Return the text of a part; None if the model writes it. bos: windows begin with BOS.

    Raises:
        ValueError: there is no such text, or the tokenizer lacks what it takes.
    """
    if part.dataset == SELF:
        return None
    if not part.chat_template:
        return read_text(part.dataset, "calibration", field)
    check_template(tokenizer, f"{field}.{part.dataset}")

    def conversation(messages: list[dict[str, Any]]) -> str:
        return without_bos(str(tokenizer.apply_chat_template(messages, tokenize=False)), tokenizer, bos)

    return read_text(part.dataset, "calibration", field, conversation)
