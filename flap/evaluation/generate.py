"""Greedy continuations of a few prompts, to read, and how much they repeat themselves.

Legend: T tokens.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from flap.config import require
from flap.data import repetition
from flap.data.temporary_state import replaced
from flap.evaluation.base import Evaluator, Measurement, Task
from flap.evaluation.errors import averaged
from flap.models import PlacedModel, running_device
from flap.storage.progress import shared

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "To make a good cup of tea, you first",
    "The difference between a virus and a bacterium is that",
)


@dataclass(frozen=True)
class Generate(Evaluator):
    """What a model writes after each prompt, always its likeliest word, without penalties; it ends with its end token.

    `generate/repetition@<max_new_tokens>`: the share of a continuation's 4-grams that it had before, 1 - distinct /
    all, as the mean over prompts; lower is better. Source: seq-rep-4 of Welleck et al., ICLR 2020, arXiv 1908.04319.

    Command: python -m flap eval=[generate] "eval.generate.prompts=[Once upon a time]"
    """

    prompts: list[str] = field(default_factory=lambda: list(PROMPTS))  # texts that are not empty, each once
    max_new_tokens: int = 48  # tokens that a continuation has at most; 1 or more

    def __post_init__(self) -> None:
        texts = bool(self.prompts) and all(self.prompts) and len(set(self.prompts)) == len(self.prompts)
        require(texts, "eval.generate.prompts", self.prompts, "a list of texts that are not empty, each once")
        require(self.max_new_tokens >= 1, "eval.generate.max_new_tokens", self.max_new_tokens, "a whole number >= 1")

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Return the task.

        Raises:
            ValueError: a prompt has no token, or does not fit into the model's context with its continuation.
        """
        prompts = {prompt: list(tokenizer(prompt).input_ids) for prompt in self.prompts}
        for prompt, tokens in prompts.items():
            require(bool(tokens), "eval.generate.prompts", repr(prompt), "a text of at least one token")
        longest = max(map(len, prompts.values()))
        if max_length is not None and longest + self.max_new_tokens > max_length:
            raise ValueError(
                f"eval.generate.max_new_tokens={self.max_new_tokens}: the longest prompt has {longest} tokens, and the "
                f"model's context ends at {max_length}"
            )
        run = partial(_measure, tokenizer=tokenizer, prompts=prompts, max_new_tokens=self.max_new_tokens)
        identity = {"prompts": list(prompts.values()), "max_new_tokens": self.max_new_tokens}
        return [Task("generate", run, identity, origin="eval.generate.prompts")]


def _measure(
    placed: PlacedModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, list[int]], max_new_tokens: int
) -> Measurement:
    written = shared(prompts.values(), "generate", lambda prompt: continuation(placed.model, prompt, max_new_tokens))
    texts = dict(zip(prompts, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True))
    repeated = list(map(repetition, written))
    return averaged(f"generate/repetition@{max_new_tokens}", repeated, "lower") | Measurement(texts=texts)


@torch.no_grad()
def continuation(model: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Return the tokens that the model writes after the prompt, greedily, up to its end token."""
    end = model.generation_config.eos_token_id
    prompt_1T = torch.tensor([prompt], device=running_device(model))
    with replaced("generation_config", GenerationConfig(), model):
        options = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=0)
        mask_1T = torch.ones_like(prompt_1T)
        tokens_1T: Tensor = model.generate(prompt_1T, attention_mask=mask_1T, generation_config=options)
    return tokens_1T[0, len(prompt) :].tolist()
