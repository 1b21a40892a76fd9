"""Read the texts of a mixture, by name or from files, and draw windows from them.

A *part* is one text of a mixture. Texts that the model writes itself are added later, with
`Windows.written`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.config import require, shown
from flap.data import (
    SELF,
    Part,
    Prompt,
    Text,
    Windows,
    parse,
    read_prompts,
    read_text,
    uses_bos,
)
from flap.data.dialogue import GIVEN, Answers, Asked, dialogues, question_ids, rendered, separated
from flap.data.named_prompts import PROMPTS, named_prompts
from flap.data.overlap import turns
from flap.data.prompts import holds_prompts
from flap.data.window_pool import apportioned

log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """The number and length of windows to draw, and how to draw them."""

    num_samples: int  # number of windows to draw
    seq_len: int  # number of tokens in a window
    seed: int
    bos: str  # the value of `calibration.bos`: true, false or auto
    answers: Answers = GIVEN


def read_windows(
    section: str,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Wanted,
    max_length: int | None,
) -> Windows:
    """Read the texts of a mixture, and return its windows.

    If the weight of a text is too small for one window, the text is left out, with a warning.

    section: the section of the config, such as "calibration", for messages.
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
    # Draw the windows now, because this raises an error if a text is too short. For this check,
    # prompts that the model still has to answer get answers of maximum length.
    _ = _with_longest_answers(windows, max_length).drawn

    # In `Windows.read`, all documents of the mixture count as read, even the documents of parts
    # that get no window.
    others = [part for part in parse(dataset, f"{section}.dataset") if part not in used]
    read_of_others = read_parts(section, others, tokenizer, wanted).read
    return replace(windows, read={**windows.read, **read_of_others})


def _used_parts(section: str, dataset: Any, wanted: Wanted) -> list[Part]:
    """Return the parts of a mixture that get at least one window, and warn about all other parts.

    Raises:
        ValueError: the config names no texts, or a weight is out of range.
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
    """Return the windows that there would be if the model wrote answers of maximum length.

    Raises:
        ValueError: all prompts of a text are so long that the model's context has no space for an
            answer.
    """
    for p, asked in windows.asked.items():
        longest = asked.answers.max_new_tokens
        enough = 1 + windows.tokens_to_write(p) // longest  # enough prompts to fill the windows
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
    """Return at most `enough` prompts that leave space for the longest answer in the context.

    Raises:
        ValueError: no prompt leaves space for the longest answer.
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
    """Check that the model can answer the prompts of a mixture.

    Texts without prompts are not checked.

    Raises:
        ValueError: prompts cannot be read, or no prompt of a text fits into the model's context.
    """
    reading = Reading(tokenizer, f"{section}.dataset", bos=False, answers=wanted.answers)
    for part in _used_parts(section, dataset, wanted):
        asked = None if part.dataset == SELF else reading.asked(part)
        if asked is not None:
            field = f"{section}.dataset={shown(part.dataset)}"
            _fitting_prompts(asked, 1, tokenizer, max_length, field)


def read_parts(
    section: str, parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, wanted: Wanted
) -> Windows:
    """Read the texts of a mixture. The windows of the returned object are drawn when first used.

    Raises:
        ValueError: a text does not exist or cannot be read.
    """
    bos = uses_bos(tokenizer, wanted.bos, "calibration.bos")
    reading = Reading(tokenizer, f"{section}.dataset", bos, wanted.answers)
    texts = list[Text | None]()
    asked = dict[int, Asked]()
    read = dict[str, tuple[str, ...]]()
    for p, part in enumerate(parts):
        content = reading.part(part)
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


class Content(NamedTuple):
    """The content of one part of a mixture.

    The content is empty if the model writes the whole text.
    """

    text: Text | None = None
    asked: Asked | None = None  # prompts that the model will answer
    read: tuple[str, ...] = ()  # the documents of the text, or the turns of its prompts


@dataclass(frozen=True)
class Reading:
    """Reads the parts of a mixture."""

    tokenizer: PreTrainedTokenizerBase
    field: str  # the config key that error messages name
    bos: bool  # whether windows begin with BOS
    answers: Answers

    def part(self, part: Part) -> Content:
        """Read the text of a part, or the prompts of the part if the model will answer them."""
        if part.dataset == SELF:
            # raises an error if the tokenizer has no token with which the model can begin a text
            _ = beginning(self.tokenizer, f"{self.field}.{SELF}")
            return Content()
        if part.documents:
            text = Text.joined(part.dataset, part.documents, origin=part.dataset)
            return Content(text, read=text.documents)
        asked = self.asked(part)
        if asked is None:
            text = read_text(part.dataset, "calibration", self.field)
            return Content(text, read=text.documents)
        read = tuple(chain.from_iterable(map(turns, asked.prompts)))
        if self.answers.writer == "self":
            return Content(asked=asked, read=read)
        text = self._with_given_answers(asked, f"{self.field}={shown(part.dataset)}")
        return Content(text, read=read)

    def asked(self, part: Part) -> Asked | None:
        """Return the prompts of a part, or None if the part is a text without prompts.

        Raises:
            ValueError: the prompts cannot be read, or the chat template refuses one of them.
        """
        read = self._prompts(part)
        if read is None:
            return None
        prompts, origin = read
        where = f"{self.field}={shown(part.dataset)}"
        has_template = self.tokenizer.chat_template is not None
        if part.chat_template and not has_template:
            raise ValueError(
                f"{where}, chat_template=true: the tokenizer has no chat template; leave it out: "
                "turns are then put one after another"
            )
        chat = has_template if part.chat_template is None else part.chat_template
        if chat:
            self._check_template(prompts, where)
        return Asked(tuple(prompts), Path(part.dataset).name, origin, chat, self.answers)

    def _check_template(self, prompts: Sequence[Prompt], where: str) -> None:
        for row, prompt in enumerate(prompts, start=1):
            try:
                rendered(prompt, prompt.answer or "a", self.tokenizer, chat=True)
            except ValueError as error:
                raise ValueError(
                    f"{where}: row {row}: {error}; chat_template=false reads plain text"
                ) from error

    def _with_given_answers(self, asked: Asked, where: str) -> Text:
        """Return one text, which consists of all prompts with the answers that came with them."""
        missing = sum(prompt.answer is None for prompt in asked.prompts)
        if missing:
            raise ValueError(
                f"{where}: {missing} prompts have no answer; calibration.answers=self writes those "
                "of calibration and recovery"
            )
        answers = list[tuple[Prompt, str]]()
        for prompt in asked.prompts:
            answer = str(prompt.answer)
            answers.append((prompt, answer if asked.chat else separated(prompt, answer)))
        return dialogues(asked, answers, self.tokenizer, self.bos)

    def _prompts(self, part: Part) -> tuple[list[Prompt], str] | None:
        """Return the prompts of a part and their origin, or None for a text without prompts."""
        if part.dataset in PROMPTS:
            return named_prompts(part.dataset, self.field)
        if not (part.chat_template or holds_prompts(part.dataset)):
            return None
        return read_prompts(part.dataset, self.field), str(Path(part.dataset).resolve())


def beginning(tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, int]:
    """Return the name and the id of the token with which the model begins a text.

    If the tokenizer has no BOS token, the EOS token is used, because it separates documents in
    training texts.

    Raises:
        ValueError: the tokenizer has neither BOS nor EOS.
    """
    if tokenizer.bos_token_id is not None:
        return "BOS", tokenizer.bos_token_id
    if tokenizer.eos_token_id is not None:
        return "EOS, as there is no BOS", tokenizer.eos_token_id
    raise ValueError(
        f"{where}: the tokenizer has neither BOS nor EOS to begin with; expected texts or files"
    )
