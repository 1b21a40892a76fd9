"""The answers that the model writes to prompts, so that it is calibrated on its own words in its own use.

Source: RESP, arXiv 2512.02185, section 3: answers of the dense model to prompts of the purpose. Legend: N prompts ·
T tokens.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import torch
from numpy.random import SeedSequence

from flap.data import Prompt, Text, Windows, repetition
from flap.data.dialogue import Asked, answered, dialogues, question
from flap.data.temporary_state import seeded
from flap.method.calibration.own_text import BATCH, DISTINCT, USES
from flap.method.calibration.sampling import continued, ready_to_write
from flap.models import PlacedModel
from flap.storage import NOT_KEPT, Notes, WorkFolder, ranks
from flap.storage.progress import progress

log = logging.getLogger(__name__)

PROMPTS = 16  # in a batch


def answer(
    model: PlacedModel, windows: Windows, part: int, context: int | None, work: WorkFolder = NOT_KEPT
) -> dict[str, Any]:
    """Return as many prompts of a part as its windows take, in an order of the seed, with the model's own answers.

    Prompts that leave no room in the context, and answers that are empty or repeat themselves, are dropped. cut: how
    many answers are longer than `max_new_tokens`. work: what an interrupted run has written there is not written again.
    """
    asked, tokenizer, notes = windows.asked[part], windows.tokenizer, Notes(BATCH, work)
    order = torch.randperm(len(asked.prompts), generator=torch.Generator().manual_seed(windows.seed)).tolist()
    batches = [[asked.prompts[n] for n in order[at : at + PROMPTS]] for at in range(0, len(order), PROMPTS)]
    pairs, tokens, written, too_long, dropped, cut = list[tuple[Prompt, str]](), 0, 0, 0, 0, 0
    needed = windows.tokens_to_write(part)
    reads = len(batches) * asked.answers.max_new_tokens
    whole = ready_to_write(model, f"{windows.field}.answers={asked.answers.writer}", reads)
    with whole.callable():
        answers = _answers(partial(_batch, whole, windows, asked, context), batches, notes)
        for prompt, text, ended in progress(answers, "the model answers"):
            if text is None or not text.strip() or repetition(tokenizer(text).input_ids) > 1 - DISTINCT:
                too_long, dropped = too_long + (text is None), dropped + (text is not None)
                continue
            cut += not ended
            pairs.append((prompt, text))
            written += len(tokenizer(text, add_special_tokens=False).input_ids)
            tokens += len(tokenizer(answered(prompt, text, tokenizer, asked.chat)[0], verbose=False).input_ids)
            if tokens >= needed:
                break
    if tokens < needed - windows.seq_len:
        done = f"{windows.field}.dataset={asked.name}: {len(pairs)} of {len(order)} prompts are answered"
        log.warning("%s; %d are too long for the context, %d answers are empty or loops", done, too_long, dropped)
    begins = f"{len(pairs)} prompts of {asked.name}"
    facts = {"tokens": written, "dropped": dropped + too_long, "cut": cut, "begins_with": begins}
    plain = [[list(prompt.messages), text] for prompt, text in pairs]
    return {"answered": plain, **facts, "seconds": sum(batch["seconds"] for batch in notes)}


def key(windows: Windows, part: int) -> dict[str, Any]:
    """Return all that the answers depend on besides the model, as part of their cache key."""
    draw = {"use": windows.field, "seed": windows.seed, "vocabulary": windows.key["vocabulary"]}
    return {"asked": windows.asked[part].key, "num_tokens": windows.tokens_to_write(part), **draw}


def text_of(written: dict[str, Any], windows: Windows, part: int) -> Text:
    """Return what `answer` has returned as a text."""
    asked = windows.asked[part]
    pairs = [(Prompt(tuple(messages), None), text) for messages, text in written["answered"]]
    return dialogues(asked, pairs, windows.tokenizer, windows.bos)


def _answers(
    write: Callable[..., dict[str, Any]], batches: list[list[Prompt]], notes: Notes[dict[str, Any]]
) -> Iterator[tuple[Prompt, str | None, bool]]:
    """Yield each prompt, its answer and whether that has an end; as many batches at a time as there are processes."""
    for b, batch in enumerate(batches):
        if b not in notes:
            numbers = range(b, min(b + ranks.size(), len(batches)))
            work = ranks.each_by_one(partial(write, batches[k], k) for k in numbers)
            for number, done in zip(numbers, work, strict=True):
                notes.write(number, done)
        yield from ((prompt, *written) for prompt, written in zip(batch, notes.read(b)["texts"], strict=True))


def _batch(
    model: PlacedModel, windows: Windows, asked: Asked, context: int | None, batch: list[Prompt], number: int
) -> dict[str, Any]:
    """Return the answers to some prompts and whether each has an end, None where a prompt does not fit; and seconds."""
    started, options = perf_counter(), asked.answers
    questions = [question(prompt, windows.tokenizer, asked.chat) for prompt in batch]
    prompts = [windows.tokenizer(one, add_special_tokens=not asked.chat, verbose=False).input_ids for one in questions]
    fit = [n for n, one in enumerate(prompts) if context is None or len(one) + options.max_new_tokens <= context]
    texts, end = list[tuple[str | None, bool]]([(None, True)] * len(batch)), windows.tokenizer.eos_token_id
    entropy = windows.seed, number, USES.index(windows.field)
    with seeded(int(SeedSequence(entropy).generate_state(1)[0])):
        rows = continued(model, [prompts[n] for n in fit], end, options) if fit else []
    for n, row in zip(fit, rows, strict=True):
        texts[n] = windows.tokenizer.decode(row, skip_special_tokens=True), len(row) < options.max_new_tokens
    return {"texts": texts, "seconds": perf_counter() - started}
