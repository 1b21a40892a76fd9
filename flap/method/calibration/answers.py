"""Let the model answer prompts, and make a text from the prompts and the answers.

The text is cut into windows of tokens, which are used for calibration, or for the training after
compression (recovery).

Source: RESP, arXiv 2512.02185, section 3. In this paper, the dense model answers prompts of the
task for which the pruned model will be used.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from flap.data import Prompt, Text, Windows, repetition
from flap.data.dialogue import Asked, dialogues, question_ids, rendered
from flap.data.token_text import continuation, without_cut_character
from flap.method.calibration.sampling import BATCH, DISTINCT, batches, continued, ready_to_write
from flap.models import PlacedModel
from flap.runtime.progress import showing
from flap.storage import NOT_KEPT, Notes, WorkFolder

log = logging.getLogger(__name__)

PROMPTS = 16  # number of prompts that the model answers in one batch

# The text of an answer, and whether the answer is complete (not cut off at max_new_tokens). The
# text is None if the prompt is too long for the model's context.
Answered = tuple[str | None, bool]


@dataclass
class _Collected:
    """The answers collected so far for one text, and the numbers of dropped prompts and answers."""

    windows: Windows
    asked: Asked
    pairs: list[tuple[Prompt, str]] = field(default_factory=list)
    tokens: int = 0  # number of tokens of the answered prompts and their answers
    answer_tokens: int = 0
    # number of prompts that leave no space in the context for an answer of maximum length
    too_long: int = 0
    dropped: int = 0  # number of answers that are empty or repeat themselves
    cut: int = 0  # number of answers in `pairs` that are cut off at max_new_tokens

    def add(self, prompt: Prompt, text: str | None, ended: bool) -> None:
        """Add an answer, unless the prompt is too long, or the answer is empty or repeats itself.

        text: the text of the answer; None if the prompt is too long.
        ended: whether the answer is complete, and not cut off at the maximum length.
        """
        tokenizer = self.windows.tokenizer
        if text is None:
            self.too_long += 1
            return
        if not text.strip() or repetition(tokenizer(text).input_ids) > 1 - DISTINCT:
            self.dropped += 1
            return
        self.cut += not ended
        self.pairs.append((prompt, text))
        self.answer_tokens += len(tokenizer(text, add_special_tokens=False).input_ids)
        document = rendered(prompt, text, tokenizer, self.asked.chat)
        self.tokens += len(tokenizer(document, verbose=False).input_ids)

    def result(self, notes: Notes) -> dict[str, Any]:
        """Return the answers, and counts such as the number of dropped answers, as JSON data.

        notes: the stored batches of answers, each with the seconds that the model took to generate
            it.
        """
        return {
            "answered": [[list(prompt.messages), text] for prompt, text in self.pairs],
            "tokens": self.answer_tokens,
            "dropped": self.dropped + self.too_long,
            "cut": self.cut,
            "begins_with": f"{len(self.pairs)} prompts of {self.asked.name}",
            "seconds": sum(batch["seconds"] for batch in notes),
        }

    def warn_or_refuse(self, prompts: int) -> None:
        """Warn that there are too few answers to fill the windows, or raise an error.

        prompts: the number of all prompts, including prompts without an answer.

        Raises:
            ValueError: most answers are empty or repeat themselves.
        """
        line = (
            f"{self.windows.field}.dataset={self.asked.name}: {len(self.pairs)} of {prompts} "
            f"prompts are answered; {self.too_long} are too long for the context, "
            f"{self.dropped} answers are empty or loops"
        )
        if self.dropped > len(self.pairs):
            instead = "calibration.temperature=1, other prompts, or calibration.answers=given"
            raise ValueError(f"{line}; take {instead}, which reads the answers of the file")
        log.warning("%s", line)


def answer(
    model: PlacedModel,
    windows: Windows,
    part: int,
    context: int | None,
    work: WorkFolder = NOT_KEPT,
) -> dict[str, Any]:
    """Let the model answer the prompts of a text until the windows of this text can be filled.

    The prompts are shuffled with the seed of the windows. A prompt is dropped if the prompt and an
    answer of maximum length do not fit into the context. An answer is dropped if it is empty or
    repeats itself. The result of this function can be stored as JSON, and `text_of` turns this
    result into a text.

    windows: the windows that will be cut from this text, and from the other texts of a mixture.
    part: the index of the text in the mixture of texts of `windows`.
    context: the context length of the model in tokens; None if it is unlimited.
    work: the working directory, which stores batches of answers. Batches that an interrupted run
        has stored are not generated again.

    Raises:
        ValueError: most answers are empty or repeat themselves, and the other answers have too few
            tokens for the windows.
    """
    asked = windows.asked[part]
    needed = windows.tokens_to_write(part)
    notes = Notes(BATCH, work)
    prompts = _shuffled(asked.prompts, windows.seed)
    chunks = [prompts[start : start + PROMPTS] for start in range(0, len(prompts), PROMPTS)]

    in_memory = ready_to_write(model, f"calibration.answers={asked.answers.writer}")
    write = partial(_batch, in_memory, windows, asked, context, chunks)
    written = batches(windows, write, lambda number: len(chunks) - number, notes)
    answers: Iterator[Answered] = chain.from_iterable(batch["texts"] for batch in written)
    collected = _Collected(windows, asked)
    with in_memory.callable():
        _collect(collected, prompts, answers, needed)
    if collected.tokens < needed - windows.seq_len:
        collected.warn_or_refuse(len(prompts))
    return collected.result(notes)


def _collect(
    collected: _Collected, prompts: list[Prompt], answers: Iterator[Answered], needed: int
) -> None:
    """Add answers until prompts and answers together have `needed` tokens; show the progress."""
    with showing("the model answers", needed) as reach:
        for number, (prompt, (text, ended)) in enumerate(zip(prompts, answers, strict=True), 1):
            collected.add(prompt, text, ended)
            # The prompts may run out before there are enough tokens. So the progress bar shows at
            # least the share of the prompts that are already answered.
            share_of_prompts = number / len(prompts)
            tokens = max(collected.tokens, int(share_of_prompts * needed))
            reach(min(tokens, needed), collected.tokens)
            if collected.tokens >= needed:
                return


def key(windows: Windows, part: int) -> dict[str, Any]:
    """Return everything that the answers depend on, except the model, as a part of a cache key."""
    return {
        "asked": windows.asked[part].key,
        "num_tokens": windows.tokens_to_write(part),
        "use": windows.field,
        "seed": windows.seed,
        "vocabulary": windows.key["vocabulary"],
    }


def text_of(written: dict[str, Any], windows: Windows, part: int) -> Text:
    """Make a text of prompts and answers from the result of `answer`."""
    asked = windows.asked[part]
    pairs = [(Prompt(tuple(messages), None), text) for messages, text in written["answered"]]
    return dialogues(asked, pairs, windows.tokenizer, windows.bos)


def without_answers(windows: Windows) -> Windows:
    """Return a copy of the windows for which the model does not have to generate any text.

    With `vocabulary=trim`, flap counts the tokens in this copy to estimate how many tokens of the
    vocabulary stay, before the model has generated any text.

    Each prompt gets the answer from its file instead of an answer of the model. If the file has no
    answer, the answer is empty. The text `self`, which the model generates as a whole, is left out.
    """
    for part, asked in windows.asked.items():
        pairs = list[tuple[Prompt, str]]()
        tokens = 0
        for prompt in _shuffled(asked.prompts, windows.seed):
            pairs.append((prompt, prompt.answer or ""))
            tokens += len(question_ids(prompt, windows.tokenizer, asked.chat))
            if tokens >= windows.tokens_to_write(part):
                break
        windows = windows.written(part, dialogues(asked, pairs, windows.tokenizer, windows.bos))
    known = [part for part, text in enumerate(windows.texts) if text is not None]
    return replace(
        windows,
        parts=tuple(windows.parts[part] for part in known),
        texts=tuple(windows.texts[part] for part in known),
        asked={},
    )


def _shuffled(prompts: tuple[Prompt, ...], seed: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)
    return [prompts[n] for n in torch.randperm(len(prompts), generator=generator).tolist()]


def _batch(
    model: PlacedModel,
    windows: Windows,
    asked: Asked,
    context: int | None,
    chunks: list[list[Prompt]],
    number: int,
) -> dict[str, Any]:
    """Answer one chunk of prompts. Return each answer's text, and whether the answer is complete.

    An answer that is cut off at the maximum length, max_new_tokens, is not complete. The text is
    None if the prompt and an answer of this length do not fit into the context.

    number: the index of the chunk in `chunks`.
    """
    tokenizer = windows.tokenizer
    options = asked.answers
    prompts = [question_ids(prompt, tokenizer, asked.chat) for prompt in chunks[number]]
    fitting = list[int]()
    for n, prompt_ids in enumerate(prompts):
        if context is None or len(prompt_ids) + options.max_new_tokens <= context:
            fitting.append(n)
    texts = list[Answered]([(None, True)] * len(prompts))
    if not fitting:
        return {"texts": texts}

    rows = continued(model, [prompts[n] for n in fitting], tokenizer, options)
    for n, row in zip(fitting, rows, strict=True):
        answer_ids = without_cut_character(row, tokenizer)
        # Without a chat template, the answer is decoded together with its prompt, because a space
        # at the beginning of the answer would otherwise be lost. A chat template adds this space by
        # itself.
        before = [] if asked.chat else prompts[n]
        text = continuation(before, answer_ids, tokenizer)
        texts[n] = (text, len(row) < options.max_new_tokens)
    return {"texts": texts}
