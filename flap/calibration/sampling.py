"""Sampling from a model: what it begins with, and sequences of its own distribution.

Legend: N sequences · T tokens a sequence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flap.models import PlacedModel


@dataclass(frozen=True)
class Beginning:
    """What the model begins each sequence with. name: for the report."""

    name: str
    tokens: tuple[int, ...]
    special: bool  # whether special tokens stay in the text


def beginning(tokenizer: PreTrainedTokenizerBase, chat_template: bool, where: str) -> Beginning:
    """Return the beginning: BOS; without one EOS, which separates documents; or a user's turn in the chat template.

    Raises:
        ValueError: the tokenizer has no such token or template.
    """
    if chat_template:
        check_template(tokenizer, where)
        marked = tokenizer.apply_chat_template([{"role": "user", "content": "\0"}], tokenize=False)
        tokens = tokenizer(str(marked).split("\0")[0], add_special_tokens=False).input_ids
        return Beginning("a user's turn in the chat template", tuple(tokens), special=True)
    for name, token in (("BOS", tokenizer.bos_token_id), ("EOS, as there is no BOS", tokenizer.eos_token_id)):
        if token is not None:
            return Beginning(name, (token,), special=False)
    raise ValueError(f"{where}: the tokenizer has neither BOS nor EOS to begin with; expected texts or files")


def check_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Check that the tokenizer has a chat template.

    Raises:
        ValueError: it has none.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"{where}.chat_template=true: the tokenizer has no chat template; leave it out")


@torch.no_grad()
def sample(model: PlacedModel, start: Beginning, num_sequences: int, length: int) -> Tensor:
    """Return sequences that the model samples at temperature 1 with a KV cache: tokens_NT on the host."""
    start_NT = torch.tensor([start.tokens] * num_sequences, device=model.device)
    options = GenerationConfig(do_sample=False, max_new_tokens=max(1, length - len(start.tokens)))
    tokens_NT: Tensor = model.model.generate(
        start_NT,
        attention_mask=torch.ones_like(start_NT),
        logits_processor=LogitsProcessorList([Drawn()]),
        generation_config=options,
    )
    return tokens_NT.cpu()


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
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Leave out the model's own options of generation, such as a penalty or where to stop, inside the block."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
