"""Reading the texts of a mixture as windows: by name, from files, or as yet to be written by the model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.config import require
from flap.data import (
    SELF,
    Part,
    Prompt,
    Text,
    Windows,
    begins_with_bos,
    parse,
    read_prompts,
    read_text,
)
from flap.data.dialogue import GIVEN, Answers, Asked, dialogues, rendered, separated
from flap.data.named_prompts import PROMPTS, named_prompts
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
    given = parse(dataset, f"{section}.dataset")
    counts = apportioned(wanted.num_samples, [part.weight for part in given])
    used = [part for part, count in zip(given, counts, strict=True) if count]
    if left_out := ", ".join(part.dataset for part in given if part not in used):
        log.warning(
            "%s.dataset: %d windows are too few for %s, left out",
            section,
            wanted.num_samples,
            left_out,
        )
    windows = read_parts(section, used, tokenizer, wanted)
    answer = wanted.answers.max_new_tokens
    fits = not windows.asked or max_length is None or answer < max_length
    require(
        fits, "calibration.max_new_tokens", answer, f"less than {max_length}, the model's context"
    )
    longest = windows  # as if all answers were as long as they may be: of no more prompts than are then enough
    for p, asked in windows.asked.items():
        answers = [
            (one, " a" * answer)
            for one in asked.prompts[: 1 + windows.tokens_to_write(p) // answer]
        ]
        longest = longest.written(p, dialogues(asked, answers, tokenizer, bos=False))
    _ = longest.drawn  # fails if a text is too short, or will be
    return windows


def read_parts(
    section: str, parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, wanted: Wanted
) -> Windows:
    """Return the texts of a mixture, whether or not windows can be drawn of them; else as `read_windows`.

    Raises:
        ValueError: there is no such text.
    """
    begins = begins_with_bos(tokenizer, wanted.bos, "calibration.bos")
    reading = Reading(tokenizer, f"{section}.dataset", begins, wanted.answers)
    read = list(map(reading.part, parts))
    texts = tuple(None if isinstance(one, Asked) else one for one in read)
    asked = {p: one for p, one in enumerate(read) if isinstance(one, Asked)}
    draw = (wanted.num_samples, wanted.seq_len, wanted.seed, begins, section)
    counted = wanted.answers.counted
    allowed = "all: this tokenizer does not tell where in the text a token is"
    require(counted == "all" or tokenizer.is_fast, "calibration.count", counted, allowed)
    return Windows(tuple(parts), texts, tokenizer, *draw, asked, counted)


@dataclass(frozen=True)
class Reading:
    """How the parts of a mixture become texts."""

    tokenizer: PreTrainedTokenizerBase
    field: str  # of the config, for error messages
    bos: bool  # windows begin with BOS
    answers: Answers

    def part(self, part: Part) -> Text | Asked | None:
        """Return the text of a part, or the prompts that the model answers; None: it writes all of the text."""
        if part.dataset == SELF:
            _ = beginning(self.tokenizer, f"{self.field}.{SELF}")  # fails if it cannot begin a text
            return None
        if prompts := self._prompts(part):
            return self._dialogues(part, *prompts)
        return read_text(part.dataset, "calibration", self.field)

    def _prompts(self, part: Part) -> tuple[list[Prompt], str] | None:
        """Return the prompts of a part and their origin; None if it is a text, or is read as one."""
        if part.dataset in PROMPTS:
            return named_prompts(part.dataset, self.field)
        if not (part.chat_template or holds_prompts(part.dataset)):
            return None
        return read_prompts(part.dataset, self.field), str(Path(part.dataset).resolve())

    def _dialogues(self, part: Part, prompts: list[Prompt], origin: str) -> Text | Asked:
        name = Path(part.dataset).name
        where = f"{self.field}={part.dataset}"
        if part.chat_template and self.tokenizer.chat_template is None:
            without = "leave it out: turns are then put one after another"
            raise ValueError(
                f"{where}, chat_template=true: the tokenizer has no chat template; {without}"
            )
        chat = (
            self.tokenizer.chat_template is not None
            if part.chat_template is None
            else part.chat_template
        )
        asked = Asked(tuple(prompts), name, origin, chat, self.answers)
        for row, prompt in enumerate(
            prompts if chat else (), start=1
        ):  # plain text refuses nothing
            try:
                rendered(prompt, prompt.answer or "a", self.tokenizer, chat)
            except ValueError as error:
                raise ValueError(
                    f"{where}: row {row}: {error}; chat_template=false reads plain text"
                ) from error
        if self.answers.writer == "self":
            return asked
        if missing := sum(prompt.answer is None for prompt in prompts):
            helps = "calibration.answers=self writes those of calibration and recovery"
            raise ValueError(f"{where}: {missing} prompts have no answer; {helps}")
        answers = list[tuple[Prompt, str]]()
        for prompt in prompts:
            answer = str(prompt.answer)
            answers.append((prompt, answer if chat else separated(prompt, answer)))
        return dialogues(asked, answers, self.tokenizer, self.bos)


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
