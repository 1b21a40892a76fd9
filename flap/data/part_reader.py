"""Read the parts of a mixture: the text of a part, or the prompts that the model will answer.

A mixture is a set of texts from which calibration or training windows are drawn. Each text of a
mixture is called a *part*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.config import shown
from flap.data import SELF, Part, Prompt, Text, read_prompts, read_text
from flap.data.dialogue import Answers, Asked, dialogues, rendered, separated
from flap.data.named_prompts import PROMPTS, named_prompts
from flap.data.overlap import turns
from flap.data.prompts import holds_prompts


class Content(NamedTuple):
    """The content of one part of a mixture.

    All fields keep their empty defaults if the model generates the whole text (`self`).
    """

    text: Text | None = None
    asked: Asked | None = None  # prompts that the model will answer
    read: tuple[str, ...] = ()  # the documents of the text, or the turns of all prompts in the part


# the config keys of the texts in which the model answers prompts if calibration.answers=self
ANSWERED_BY_MODEL = ("calibration.dataset", "recover.dataset")


@dataclass(frozen=True)
class PartReader:
    """Reads the parts of a mixture."""

    tokenizer: PreTrainedTokenizerBase
    field: str  # the config key that error messages name
    bos: bool  # whether windows begin with BOS
    answers: Answers

    def part(self, part: Part) -> Content:
        """Read the text of a part, or the prompts of the part if the model will answer them."""
        if part.dataset == SELF:
            # check that the tokenizer has a token with which the model can begin a text
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
        missing = sum(prompt.answer is None for prompt in asked.prompts)
        if missing:
            remedy = "add an answer to each prompt of the file"
            if self.field in ANSWERED_BY_MODEL:
                remedy = f"{remedy}, or let the model answer them with calibration.answers=self"
            raise ValueError(
                f"{where}: not every prompt has an answer ({missing} missing); {remedy}"
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

    If the tokenizer has no BOS token, the EOS token is used, because EOS separates the documents of
    a model's training text, so the model has learnt to begin a document after EOS.

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
