"""Reading the texts of a mixture as windows: by name, from files, or as yet to be written by the model."""

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
    """The windows to draw."""

    num_samples: int  # windows
    seq_len: int  # tokens in one
    seed: int
    bos: str  # true, false or auto, as in the config
    answers: Answers = GIVEN  # to prompts


def read_windows(
    section: str,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Wanted,
    max_length: int | None,
) -> Windows:
    """Return the windows of a mixture; a text whose weight is too small for one is left out, with a warning.

    section: of the config, as "calibration", for messages. dataset: as in the config. max_length: the model's context
    in tokens; None: unlimited.

    Raises:
        ValueError: there is no such text, it has too few tokens, or the windows are longer than the model's context.
    """
    if max_length is not None and wanted.seq_len > max_length:
        raise ValueError(
            f"{section}.seq_len={wanted.seq_len}: the model's context ends at {max_length} tokens"
        )
    used = _used_parts(section, dataset, wanted)
    windows = read_parts(section, used, tokenizer, wanted)
    _ = _with_longest_answers(windows, max_length).drawn  # fails if a text is too short, or will be
    # the same documents count as read, however many windows there are
    others = [part for part in parse(dataset, f"{section}.dataset") if part not in used]
    read = {**windows.read, **read_parts(section, others, tokenizer, wanted).read}
    return replace(windows, read=read)


def _used_parts(section: str, dataset: Any, wanted: Wanted) -> list[Part]:
    """Return the parts of a mixture that have at least one window. Warn of the others.

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
    """Return windows as if each answer that the model has still to write were as long as it may be.

    Raises:
        ValueError: no prompt of a text leaves room for such an answer in the model's context.
    """
    for p, asked in windows.asked.items():
        longest = asked.answers.max_new_tokens
        enough = 1 + windows.tokens_to_write(p) // longest  # prompts
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
    """Return prompts that leave room for the longest answer in the context, at most `enough`.

    Raises:
        ValueError: there is none.
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
    """Check that the model can answer the prompts of a mixture. The other texts are not read.

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
    """Return the texts of a mixture, whether or not windows can be drawn of them; else as `read_windows`.

    Raises:
        ValueError: there is no such text.
    """
    begins = uses_bos(tokenizer, wanted.bos, "calibration.bos")
    reading = Reading(tokenizer, f"{section}.dataset", begins, wanted.answers)
    contents = [reading.part(part) for part in parts]
    texts = tuple(one.text for one in contents)
    asked = {p: one.asked for p, one in enumerate(contents) if one.asked is not None}
    read = {part.dataset: content.read for part, content in zip(parts, contents, strict=True)}
    draw = (wanted.num_samples, wanted.seq_len, wanted.seed, begins, section)
    counted = wanted.answers.counted
    allowed = "all: this tokenizer does not tell where in the text a token is"
    require(counted == "all" or tokenizer.is_fast, "calibration.count", counted, allowed)
    return Windows(tuple(parts), texts, tokenizer, *draw, asked, counted, read)


class Content(NamedTuple):
    """What a part of a mixture holds. Of a text that the model writes all of, there is nothing yet."""

    text: Text | None = None
    asked: Asked | None = None  # prompts that the model answers
    read: tuple[str, ...] = ()  # the documents, or the turns of prompts


@dataclass(frozen=True)
class Reading:
    """How the parts of a mixture become texts."""

    tokenizer: PreTrainedTokenizerBase
    field: str  # of the config, for error messages
    bos: bool  # windows begin with BOS
    answers: Answers

    def part(self, part: Part) -> Content:
        """Return the content of a part: a text, or the prompts that the model answers."""
        if part.dataset == SELF:
            _ = beginning(self.tokenizer, f"{self.field}.{SELF}")  # fails if it cannot begin a text
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
        """Return the prompts of a part. Return None if the part is a text without prompts.

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
            without = "leave it out: turns are then put one after another"
            raise ValueError(
                f"{where}, chat_template=true: the tokenizer has no chat template; {without}"
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
        """Return prompts with the answers that their file has as a text."""
        if missing := sum(prompt.answer is None for prompt in asked.prompts):
            helps = "calibration.answers=self writes those of calibration and recovery"
            raise ValueError(f"{where}: {missing} prompts have no answer; {helps}")
        answers = list[tuple[Prompt, str]]()
        for prompt in asked.prompts:
            answer = str(prompt.answer)
            answers.append((prompt, answer if asked.chat else separated(prompt, answer)))
        return dialogues(asked, answers, self.tokenizer, self.bos)

    def _prompts(self, part: Part) -> tuple[list[Prompt], str] | None:
        """Return the prompts of a part and their origin; None if it is a text, or is read as one."""
        if part.dataset in PROMPTS:
            return named_prompts(part.dataset, self.field)
        if not (part.chat_template or holds_prompts(part.dataset)):
            return None
        return read_prompts(part.dataset, self.field), str(Path(part.dataset).resolve())


def beginning(tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, int]:
    """Return what the model begins each text of its own with, its name and token: BOS, or EOS between documents.

    Raises:
        ValueError: the tokenizer has neither.
    """
    if tokenizer.bos_token_id is not None:
        return "BOS", tokenizer.bos_token_id
    if tokenizer.eos_token_id is not None:
        return "EOS, as there is no BOS", tokenizer.eos_token_id
    raise ValueError(
        f"{where}: the tokenizer has neither BOS nor EOS to begin with; expected texts or files"
    )
