"""vLLM in this process: one model after the other, in float32, with its prefix cache on."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}

from safetensors.torch import load_file
from torch import Tensor
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.distributed import cleanup_dist_env_and_memory


@dataclass(frozen=True)
class Expected:
    """What transformers makes of a checkpoint's prompts, in the main environment."""

    prompts_NT: Tensor
    generated_NT: Tensor
    logprobs_NT: Tensor

    @classmethod
    def of(cls, checkpoint: Path) -> "Expected":
        return cls(**load_file(f"{checkpoint}.safetensors"))


@contextmanager
def serving(checkpoint: Path, **options: Any) -> Iterator[LLM]:
    """The engine; what it holds is given back."""
    llm = None
    try:
        llm = LLM(str(checkpoint), dtype="float32", enforce_eager=True, max_model_len=128, block_size=32, **options)
        yield llm
    finally:
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def generate(llm: LLM, prompts_NT: Tensor, **options: Any) -> list[Any]:
    """The outputs of one batch of requests, 24 greedy tokens each."""
    sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0, **options)
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts_NT.tolist()]
    return llm.generate(prompts, sampling, use_tqdm=False)


def logprobs(output: Any) -> list[float]:
    """Those of the prompt's tokens from the second on, and of the generated ones."""
    of_prompt = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    of_new = zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
    return [known[token].logprob for pairs in (of_prompt, of_new) for token, known in pairs]
