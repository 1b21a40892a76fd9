"""Run models in vLLM in this process, one after the other, with a prefix cache.

The models run in float32, unless `options` name another dtype.
"""

import gc
import os
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # size of the KV cache in GiB
    # Without this setting, all test processes would run on the same core, and tensor parallelism
    # with two processes would need two NUMA nodes.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}

from torch import Tensor
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.distributed import cleanup_dist_env_and_memory


def served(checkpoint: Path, prompts_NT: Tensor, **options: Any) -> tuple[list[Any], list[Any]]:
    """Generate 24 greedy tokens for each prompt twice, and return the outputs of both runs.

    The second run reads the prompts from the prefix cache.
    """
    try:
        return _served(checkpoint, prompts_NT, **options)
    finally:
        gc.collect()  # the engine must be freed before its process groups are destroyed
        cleanup_dist_env_and_memory()


def _served(checkpoint: Path, prompts_NT: Tensor, **options: Any) -> tuple[list[Any], list[Any]]:
    shape: dict[str, Any] = {
        "max_model_len": 128,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 1024,
        "block_size": 32,
    }
    llm = LLM(str(checkpoint), enforce_eager=True, **shape | {"dtype": "float32"} | options)
    sampling: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": 24,
        "ignore_eos": True,
        "logprobs": 0,
    }
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts_NT.tolist()]
    with_prompts = llm.generate(
        prompts, SamplingParams(**sampling, prompt_logprobs=0), use_tqdm=False
    )
    return with_prompts, llm.generate(prompts, SamplingParams(**sampling), use_tqdm=False)


def logprobs(output: Any) -> list[float]:
    """Return the log-probabilities of all tokens of prompt and continuation, except the first."""
    of_prompt = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    of_new = zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
    return [known[token].logprob for pairs in (of_prompt, of_new) for token, known in pairs]
