"""Sampling sequences from a model's own distribution, in batches that are drawn one by one.

Legend: N sequences · T tokens a sequence · S tokens in the cache · H query heads · G KV heads · D head size ·
B sequences times KV heads · Q query heads of one KV head.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, takewhile
from time import perf_counter
from typing import Any

import torch
from numpy.random import SeedSequence
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flap.data import Windows
from flap.data.dialogue import Answers
from flap.data.temporary_state import replaced, seeded
from flap.models import PlacedModel
from flap.storage import Kind, Notes, as_json, ranks

log = logging.getLogger(__name__)

BATCH: Kind[Any] = as_json("batch")  # what was written, and the seconds that it took
USES = (
    "calibration",
    "recover",
)  # each has draws of its own: what is trained on was not calibrated on
DISTINCT = (
    0.5  # what is written is dropped as a loop if less than this share of its 4-grams are distinct
)


def batches(
    windows: Windows,
    write: Callable[[int], dict[str, Any]],
    at_once: Callable[[int], int],
    notes: Notes[Any],
) -> Iterator[dict[str, Any]]:
    """Yield what a model writes for windows, batch after batch, each drawn with a seed of its own.

    So no batch depends on who has written those before it. write: writes that of a number. at_once: how many, from a
    number on, may be written at once, each by one process; 0: no more. notes: of batches, which are written only once.
    """

    def timed(number: int) -> dict[str, Any]:
        started = perf_counter()
        entropy = (windows.seed, number, USES.index(windows.field))
        with seeded(int(SeedSequence(entropy).generate_state(1)[0])):
            return {**write(number), "seconds": perf_counter() - started}

    for b in count():
        if not (numbers := range(b, b + min(ranks.size(), at_once(b)))):
            return
        if b not in notes:
            made = ranks.each_by_one(partial(timed, number) for number in numbers)
            for number, batch in zip(numbers, made, strict=True):
                notes.write(number, batch)
        yield notes.read(b)


def ready_to_write(model: PlacedModel, where: str) -> PlacedModel:
    """Return the model in memory, where it fits; else as it is, with a warning."""
    if model.fits_in_memory():
        return model.in_memory()
    slow = "the model does not fit into memory and is read from disk for each token of a batch"
    log.warning(
        "%s: %s; take other texts, or have it written on a larger machine (docs/calibration.md)",
        where,
        slow,
    )
    return model


@torch.no_grad()
def sample(model: PlacedModel, first: int, num_sequences: int, length: int) -> Tensor:
    """Return sequences that the model samples at temperature 1 after a first token, with a KV cache: tokens_NT.

    The model's own options of generation, such as a penalty or where to stop, are left out.
    """
    start_NT = torch.full((num_sequences, 1), first, device=model.device)
    options = GenerationConfig(do_sample=False, max_new_tokens=max(1, length - 1))
    with replaced("generation_config", GenerationConfig(), model.model):
        mask_NT = torch.ones_like(start_NT)
        drawn = LogitsProcessorList([Drawn()])
        tokens_NT: Tensor = model.model.generate(
            start_NT, attention_mask=mask_NT, logits_processor=drawn, generation_config=options
        )
    return tokens_NT.cpu()


@torch.no_grad()
def continued(
    model: PlacedModel, prompts: Sequence[Sequence[int]], end: int | None, answers: Answers
) -> list[list[int]]:
    """Return what the model writes after each prompt, up to an end token. end: the tokenizer's, beside the model's own.

    The model's own options of generation are left out.
    """
    longest = max(map(len, prompts))
    own = model.model.generation_config.eos_token_id
    ends = [one for one in (*(own if isinstance(own, list) else [own]), end) if one is not None]
    tokens_NT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_NT = torch.zeros_like(tokens_NT)
    for n, prompt in enumerate(prompts):
        tokens_NT[n, longest - len(prompt) :], mask_NT[n, longest - len(prompt) :] = (
            torch.tensor(prompt),
            1,
        )
    drawn = LogitsProcessorList(
        [TemperatureLogitsWarper(answers.temperature), Drawn()] if answers.temperature else []
    )
    options = GenerationConfig(
        max_new_tokens=answers.max_new_tokens, eos_token_id=ends or None, pad_token_id=0
    )
    with replaced("generation_config", GenerationConfig(), model.model):
        written_NT: Tensor = model.model.generate(
            tokens_NT.to(model.device), attention_mask=mask_NT.to(model.device), logits_processor=drawn,
            generation_config=options,
        )  # fmt: skip
    return [
        list(takewhile(lambda token: token not in ends, row))
        for row in written_NT[:, longest:].tolist()
    ]


class Drawn(LogitsProcessor):
    """Draws a word from each distribution and leaves no other: greedy decoding then samples at temperature 1.

    One uniform number a word drawn, where `do_sample` takes an exponential one for each word of the vocabulary: on a
    CPU that took half of the time.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return log-probabilities: 0 for the word that is drawn, minus infinity for the others."""
        cumulative = scores.float().softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.rand(len(scores), 1, device=scores.device) * cumulative[:, -1:]
        word = torch.searchsorted(cumulative, drawn).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, word, 0.0)


@contextmanager
def attention_of_one_query(model: PlacedModel) -> Iterator[None]:
    """On a CPU, compute the attention of a single query by two matrix products, inside the block.

    torch's own kernel (version 2.13) is made for many queries: it took two thirds of a step of decoding.
    """
    if model.device.type != "cpu":
        yield
        return
    before, ALL_ATTENTION_FUNCTIONS["sdpa"] = ALL_ATTENTION_FUNCTIONS["sdpa"], _attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before  # also where the caller has put one of their own


def _attention(
    module: nn.Module,
    query_NHTD: Tensor,
    key_NGSD: Tensor,
    value_NGSD: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return softmax(scaling · Q Kᵀ) V of one query that sees all keys, as NTHD; all else as transformers does it."""
    if query_NHTD.shape[2] > 1 or mask is not None or options.get("position_bias") is not None:
        usual: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_NHTD, key_NGSD, value_NGSD, mask, **options
        )
        return usual
    key_BSD, value_BSD = (
        key_NGSD.flatten(0, 1),
        value_NGSD.flatten(0, 1),
    )  # one product for each sequence and KV head
    scaling = options.get("scaling") or query_NHTD.shape[-1] ** -0.5
    query_BQD = query_NHTD.reshape(len(key_BSD), -1, query_NHTD.shape[-1]) * scaling
    weight_BQS = (query_BQD @ key_BSD.mT).softmax(dim=-1)
    return (weight_BQS @ value_BSD).view(len(query_NHTD), 1, query_NHTD.shape[1], -1), None
