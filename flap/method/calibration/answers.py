"""The answers that the model writes to prompts, so that it is calibrated on its own words in its own use.

Source: RESP, arXiv 2512.02185, section 3: answers of the dense model to prompts of the purpose. Legend: N prompts ·
T tokens.
"""

import logging
from functools import partial
from itertools import chain
from typing import Any

import torch

from flap.data import Prompt, Text, Windows, repetition
from flap.data.dialogue import Asked, dialogues, question_ids, rendered
from flap.data.token_text import continuation, decoded, without_cut_character
from flap.method.calibration.sampling import BATCH, DISTINCT, batches, continued, ready_to_write
from flap.models import PlacedModel
from flap.storage import NOT_KEPT, Notes, WorkFolder
from flap.storage.progress import progress

log = logging.getLogger(__name__)

PROMPTS = 16  # in a batch


def answer(
    model: PlacedModel,
    windows: Windows,
    part: int,
    context: int | None,
    work: WorkFolder = NOT_KEPT,
) -> dict[str, Any]:
    """Return as many prompts of a part as its windows take, in an order of the seed, with the model's own answers.

    Prompts that leave no room in the context, and answers that are empty or repeat themselves, are dropped. cut: how
    many answers are longer than `max_new_tokens`. work: what an interrupted run has written there is not written again.
    """
    asked = windows.asked[part]
    tokenizer = windows.tokenizer
    notes = Notes(BATCH, work)
    order = torch.randperm(
        len(asked.prompts), generator=torch.Generator().manual_seed(windows.seed)
    ).tolist()
    prompts = [asked.prompts[n] for n in order]
    parts = [prompts[at : at + PROMPTS] for at in range(0, len(order), PROMPTS)]
    pairs = list[tuple[Prompt, str]]()
    tokens = 0
    written = 0
    too_long = 0
    dropped = 0
    cut = 0
    needed = windows.tokens_to_write(part)
    whole = ready_to_write(model, f"calibration.answers={asked.answers.writer}")
    write = partial(_batch, whole, windows, asked, context, parts)
    made = batches(windows, write, lambda number: len(parts) - number, notes)
    answers = zip(prompts, chain.from_iterable(batch["texts"] for batch in made), strict=True)
    with whole.callable():
        for prompt, (text, ended) in progress(answers, "the model answers"):
            if (
                text is None
                or not text.strip()
                or repetition(tokenizer(text).input_ids) > 1 - DISTINCT
            ):
                too_long = too_long + (text is None)
                dropped = dropped + (text is not None)
                continue
            cut += not ended
            pairs.append((prompt, text))
            written += len(tokenizer(text, add_special_tokens=False).input_ids)
            document = rendered(prompt, text, tokenizer, asked.chat)
            tokens += len(tokenizer(document, verbose=False).input_ids)
            if tokens >= needed:
                break
    if tokens < needed - windows.seq_len:
        done = f"{windows.field}.dataset={asked.name}: {len(pairs)} of {len(order)} prompts are answered"
        log.warning(
            "%s; %d are too long for the context, %d answers are empty or loops",
            done,
            too_long,
            dropped,
        )
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


def _batch(
    model: PlacedModel,
    windows: Windows,
    asked: Asked,
    context: int | None,
    parts: list[list[Prompt]],
    number: int,
) -> dict[str, Any]:
    """Return the answers to a part of the prompts and whether each has an end.

    An answer is None where the prompt does not fit into the context.
    """
    tokenizer = windows.tokenizer
    options = asked.answers
    prompts = [question_ids(prompt, tokenizer, asked.chat) for prompt in parts[number]]
    fit = list[int]()
    for n, prompt_ids in enumerate(prompts):
        if context is None or len(prompt_ids) + options.max_new_tokens <= context:
            fit.append(n)
    texts = list[tuple[str | None, bool]]([(None, True)] * len(prompts))
    if not fit:
        return {"texts": texts}

    rows = continued(model, [prompts[n] for n in fit], tokenizer.eos_token_id, options)
    for n, row in zip(fit, rows, strict=True):
        whole_characters = without_cut_character(row, tokenizer)
        if asked.chat:  # the template says what stands between question and answer
            text = decoded(whole_characters, tokenizer)
        else:
            text = continuation(prompts[n], whole_characters, tokenizer)
        texts[n] = (text, len(row) < options.max_new_tokens)
    return {"texts": texts}
