"""Sample text from a model, in batches that do not depend on each other.

Legend: N: sequences · T: tokens per sequence · S: tokens in the key-value cache · H: query heads ·
G: key-value heads · D: head size · B: sequences times KV heads · Q: query heads of one KV head.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from numpy.random import SeedSequence
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flap.data import Windows
from flap.data.dialogue import Answers
from flap.models import PlacedModel
from flap.runtime.temporary_state import replaced, seeded
from flap.storage import Kind, Notes, as_json, results_of_steps

log = logging.getLogger(__name__)

# the file format for a batch of texts that a model has generated, with the seconds that this took
BATCH: Kind[Any] = as_json("batch")
# The config sections for which a model can generate texts. Each section gets different random
# numbers, so that a model is not trained on the same text on which it was calibrated.
USES = ("calibration", "recover")
# A sequence counts as repeating itself, and is dropped, if the share of distinct 4-grams among its
# 4-grams is below this value.
DISTINCT = 0.5


def batches(
    windows: Windows,
    write: Callable[[int], dict[str, Any]],
    at_once: Callable[[int], int],
    notes: Notes[Any],
) -> Iterator[dict[str, Any]]:
    """Yield the batches of text that a model generates for `windows`, one after another.

    Each batch has a separate random seed, so its text does not depend on which process has
    generated the earlier batches.

    write: a function that generates the batch with a given index.
    at_once: a function that gets the index of the next batch, and returns how many batches may be
        generated at the same time, including the next one. It returns 0 if the text is complete.
    notes: stores the batches. Batches that an interrupted run has stored are not generated again.
    """

    def timed(number: int) -> dict[str, Any]:
        started = perf_counter()
        entropy = (windows.seed, number, USES.index(windows.field))
        with seeded(int(SeedSequence(entropy).generate_state(1)[0])):
            return {**write(number), "seconds": perf_counter() - started}

    return results_of_steps(notes, timed, at_once)


def ready_to_write(model: PlacedModel, where: str) -> PlacedModel:
    """Load the model into memory if it fits, and return it. If it does not fit, log a warning.

    where: the config option that needs text from the model. The warning begins with this option.
    """
    if model.fits_in_memory():
        return model.in_memory()
    log.warning(
        "%s: the model does not fit into memory and is read from disk for each token of a batch; "
        "take other texts, or have the text written on a larger machine (docs/calibration.md)",
        where,
    )
    return model


@torch.no_grad()
def sample(
    model: PlacedModel,
    first: int,
    num_sequences: int,
    length: int,
    on_token: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample sequences that begin with the token `first`, at temperature 1, as tokens_NT.

    Options in the model's generation_config, such as penalties or stop tokens, are ignored.

    on_token: called before each new token, with the number of tokens so far in each sequence.
    """
    start_NT = torch.full((num_sequences, 1), first, device=model.device)
    options = GenerationConfig(do_sample=False, max_new_tokens=max(1, length - 1))
    with replaced("generation_config", GenerationConfig(), model.model):
        mask_NT = torch.ones_like(start_NT)
        drawn = LogitsProcessorList([Drawn(on_token)])
        tokens_NT: Tensor = model.model.generate(
            start_NT, attention_mask=mask_NT, logits_processor=drawn, generation_config=options
        )
    return tokens_NT.cpu()


@torch.no_grad()
def continued(
    model: PlacedModel,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    answers: Answers,
    stops: Sequence[str] = (),
) -> list[list[int]]:
    """Return the tokens that the model generates after each prompt, up to an end-of-sequence token.

    Generation ends at the end-of-sequence tokens in the model's generation_config and in the
    tokenizer. These tokens are not returned. All other options in generation_config are ignored.

    stops: strings at which generation may end. The caller must ignore tokens after such a string.
    """
    of_model = model.model.generation_config.eos_token_id
    of_tokenizer = tokenizer.eos_token_id
    candidates = [of_model, of_tokenizer]
    if isinstance(of_model, list):
        candidates = [*of_model, of_tokenizer]
    ends = [token for token in candidates if token is not None]

    tokens_NT, mask_NT = _padded(prompts)
    processors = LogitsProcessorList()
    if answers.temperature:
        processors += [TemperatureLogitsWarper(answers.temperature), Drawn()]
    options = GenerationConfig(
        max_new_tokens=answers.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=0,
        stop_strings=list(stops) or None,
    )
    with replaced("generation_config", GenerationConfig(), model.model):
        written_NT: Tensor = model.model.generate(
            tokens_NT.to(model.device),
            attention_mask=mask_NT.to(model.device),
            logits_processor=processors,
            generation_config=options,
            tokenizer=tokenizer,  # transformers needs the tokenizer to find the stop strings
        )
    return [_before_end(ends, row) for row in written_NT[:, tokens_NT.shape[1] :].tolist()]


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the prompts as one tensor, padded on the left, and the attention mask.

    With padding on the left, all answers begin at the same position.
    """
    longest = max(map(len, prompts))
    tokens_NT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_NT = torch.zeros_like(tokens_NT)
    for n, prompt in enumerate(prompts):
        start = longest - len(prompt)
        tokens_NT[n, start:] = torch.tensor(prompt)
        mask_NT[n, start:] = 1
    return tokens_NT, mask_NT


def _before_end(ends: Sequence[int], tokens: Sequence[int]) -> list[int]:
    for position, token in enumerate(tokens):
        if token in ends:
            return list(tokens[:position])
    return list(tokens)


class Drawn(LogitsProcessor):
    """A logits processor that draws each token, so that greedy decoding samples at temperature 1.

    The processor needs one uniform random number per drawn token. The option `do_sample` of
    transformers needs one exponential random number for each token of the vocabulary. On a CPU,
    drawing all of these exponential random numbers took half of the time of sampling.

    on_token: called before each new token, with the number of tokens so far in each sequence.
    """

    def __init__(self, on_token: Callable[[int], None] | None = None) -> None:
        self.on_token = on_token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return log-probabilities: 0 for the drawn token, minus infinity for all other tokens."""
        if self.on_token is not None:
            self.on_token(input_ids.shape[1])
        cumulative = scores.float().softmax(dim=-1).cumsum(dim=-1)
        point = torch.rand(len(scores), 1, device=scores.device) * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, point).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


@contextmanager
def attention_of_one_query(model: PlacedModel) -> Iterator[None]:
    """During a `with` block, compute the attention of a single query with two matrix products.

    If the model is not on a CPU, nothing changes. The attention kernel of torch 2.13 for CPUs is
    optimised for many queries. With one query, it took two thirds of the time of a decoding step.
    """
    if model.device.type != "cpu":
        yield
        return
    # remember the current function, which the caller may have set, and restore it at the end
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before


def _attention(
    module: nn.Module,
    query_NHTD: Tensor,
    key_NGSD: Tensor,
    value_NGSD: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute the attention softmax(scaling · Q Kᵀ) V of a single query that sees all keys.

    The result has the shape NTHD.

    With several queries, a mask or a position bias, call the attention function of transformers
    instead.
    """
    if query_NHTD.shape[2] > 1 or mask is not None or options.get("position_bias") is not None:
        usual: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_NHTD, key_NGSD, value_NGSD, mask, **options
        )
        return usual

    # compute one matrix product for each sequence and KV head
    key_BSD = key_NGSD.flatten(0, 1)
    value_BSD = value_NGSD.flatten(0, 1)
    scaling = options.get("scaling") or query_NHTD.shape[-1] ** -0.5
    query_BQD = query_NHTD.reshape(len(key_BSD), -1, query_NHTD.shape[-1]) * scaling
    weight_BQS = (query_BQD @ key_BSD.mT).softmax(dim=-1)
    return (weight_BQS @ value_BSD).view(len(query_NHTD), 1, query_NHTD.shape[1], -1), None
