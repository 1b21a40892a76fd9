"""Read the texts of a mixture, and draw token windows from them.

A mixture is a set of texts with weights, such as `calibration.dataset`. Each text of a mixture is
called a *part*. It is given by a name that flap knows, such as `wikitext2`, by the path of a file,
or as strings in memory, which together count as one text. Texts that the model itself generates are
added later, with `Windows.written`.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.config import require, shown
from flap.data import SELF, Part, Prompt, Text, Windows, parse, uses_bos
from flap.data.dialogue import GIVEN, Answers, Asked, dialogues, question_ids
from flap.data.part_reader import PartReader
from flap.data.window_pool import apportioned

log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """The number and length of the windows to draw, and how to draw them."""

    num_samples: int  # number of windows to draw
    seq_len: int  # number of tokens in a window
    seed: int  # seed for drawing windows at random
    bos: str  # the value of `calibration.bos`: true, false or auto
    # where answers to prompts come from, and over which tokens statistics are computed
    answers: Answers = GIVEN


def read_windows(
    section: str,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Wanted,
    max_length: int | None,
) -> Windows:
    """Read the texts of a mixture, and return windows of these texts.

    If the weight of a text is too small for one window, the text is left out, with a warning.

    section: the section of the config that messages name, such as "calibration".
    dataset: the mixture in the form that `calibration.dataset` has in the config.
    max_length: the context length of the model in tokens; None if the context is unlimited.

    Raises:
        ValueError: a text does not exist or has too few tokens, or windows or prompts do not fit
            into the model's context.
    """
    if max_length is not None and wanted.seq_len > max_length:
        raise ValueError(
            f"{section}.seq_len={wanted.seq_len}: the model's context ends at {max_length} tokens"
        )
    used = _used_parts(section, dataset, wanted)
    windows = read_parts(section, used, tokenizer, wanted)
    # Draw the windows now, so that an error is raised early if a text is too short. For this check,
    # prompts that the model has not answered yet get placeholder answers of maximum length.
    _ = _with_longest_answers(windows, max_length).drawn

    # `Windows.read` contains the documents of all parts of the mixture, even of parts that get no
    # window.
    others = [part for part in parse(dataset, f"{section}.dataset") if part not in used]
    read_of_others = read_parts(section, others, tokenizer, wanted).read
    return replace(windows, read={**windows.read, **read_of_others})


def _used_parts(section: str, dataset: Any, wanted: Wanted) -> list[Part]:
    """Return the parts of a mixture that get at least one window, and warn about all other parts.

    Raises:
        ValueError: `dataset` does not describe a mixture, or a weight is out of range.
    """
    parts = parse(dataset, f"{section}.dataset")
    counts = apportioned(wanted.num_samples, [part.weight for part in parts])
    used = list[Part]()
    left_out = list[str]()
    for part, count in zip(parts, counts, strict=True):
        if count:
            used.append(part)
        else:
            left_out.append(part.dataset)
    if left_out:
        log.warning(
            "%s.dataset: %d windows are too few for %s, left out",
            section,
            wanted.num_samples,
            ", ".join(left_out),
        )
    return used


def _with_longest_answers(windows: Windows, max_length: int | None) -> Windows:
    """Return the windows with placeholder answers of maximum length for unanswered prompts.

    Raises:
        ValueError: all prompts of a text are so long that the model's context has no space left for
            an answer of maximum length.
    """
    for p, asked in windows.asked.items():
        longest = asked.answers.max_new_tokens
        # this many prompts, with answers of maximum length, are enough to fill the part's windows
        enough = 1 + windows.tokens_to_write(p) // longest
        field = f"{windows.field}.dataset={shown(windows.parts[p].dataset)}"
        prompts = _fitting_prompts(asked, enough, windows.tokenizer, max_length, field)
        answers = [(prompt, " a" * longest) for prompt in prompts]
        windows = windows.written(p, dialogues(asked, answers, windows.tokenizer, bos=False))
    return windows


def _fitting_prompts(
    asked: Asked,
    enough: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    field: str,
) -> list[Prompt]:
    """Return the prompts that leave space in the model's context for an answer of maximum length.

    At most the first `enough` of these prompts are returned.

    Raises:
        ValueError: no prompt leaves space for an answer of maximum length.
    """
    if max_length is None:
        return list(asked.prompts[:enough])
    longest_answer = asked.answers.max_new_tokens
    allowed = f"less than {max_length}, the model's context"
    require(longest_answer < max_length, "calibration.max_new_tokens", longest_answer, allowed)

    fitting = list[Prompt]()
    shortest: int | None = None
    for prompt in asked.prompts:
        length = len(question_ids(prompt, tokenizer, asked.chat))
        shortest = length if shortest is None else min(shortest, length)
        if length + longest_answer <= max_length:
            fitting.append(prompt)
        if len(fitting) == enough:
            break
    if fitting or shortest is None:
        return fitting

    advice = "a model with a longer context"
    if shortest < max_length:
        advice = f"calibration.max_new_tokens={max_length - shortest}"
    raise ValueError(
        f"{field}: none of its {len(asked.prompts):,} prompts leaves room for an answer in the "
        f"model's context of {max_length:,} tokens: the shortest has {shortest:,} tokens, and "
        f"calibration.max_new_tokens={longest_answer}; take shorter prompts or {advice}"
    )


def check_prompts(
    section: str,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Wanted,
    max_length: int | None,
) -> None:
    """Check that the model can answer at least one prompt of each text that has prompts.

    Raises:
        ValueError: prompts cannot be read, or no prompt of a text leaves space for an answer in the
            model's context.
    """
    reader = PartReader(tokenizer, f"{section}.dataset", bos=False, answers=wanted.answers)
    for part in _used_parts(section, dataset, wanted):
        asked = None if part.dataset == SELF else reader.asked(part)
        if asked is not None:
            field = f"{section}.dataset={shown(part.dataset)}"
            _fitting_prompts(asked, 1, tokenizer, max_length, field)


def read_parts(
    section: str, parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, wanted: Wanted
) -> Windows:
    """Read the given parts of a mixture. `Windows` draws the token windows later, on first use.

    Raises:
        ValueError: a text does not exist or cannot be read.
    """
    bos = uses_bos(tokenizer, wanted.bos, "calibration.bos")
    reader = PartReader(tokenizer, f"{section}.dataset", bos, wanted.answers)
    texts = list[Text | None]()
    asked = dict[int, Asked]()
    read = dict[str, tuple[str, ...]]()
    for p, part in enumerate(parts):
        content = reader.part(part)
        texts.append(content.text)
        if content.asked is not None:
            asked[p] = content.asked
        read[part.dataset] = content.read

    counted = wanted.answers.counted
    allowed = "all: this tokenizer does not tell where in the text a token is"
    require(counted == "all" or tokenizer.is_fast, "calibration.count", counted, allowed)
    return Windows(
        parts=tuple(parts),
        texts=tuple(texts),
        tokenizer=tokenizer,
        num_samples=wanted.num_samples,
        seq_len=wanted.seq_len,
        seed=wanted.seed,
        bos=bos,
        field=section,
        asked=asked,
        counted=counted,
        read=read,
    )
