"""A process that holds a checkpoint in an engine and times requests: `engine_speed.py ENGINE CHECKPOINT LONGEST BATCH`.

The interpreter needs the engine alone, not flap. LONGEST is the tokens of the longest prompt and its answer, BATCH the
most requests at once. Each line of the standard input is a request: PROMPT NEW BATCH, numbers of tokens and of prompts.
Each is answered by a line of JSON: tokens a second of prefill and of decoding, milliseconds to the first token and for
each further one, and the peak memory in bytes; or, under "absent", why there are none.
With one thread (OMP_NUM_THREADS=1) seconds are those of the processor, which the machine's other processes hardly
lengthen; with more they are those of the clock.
"""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOM = 32  # tokens; engines want a little more than a request has
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
SECONDS = time.process_time if THREADS == 1 else time.perf_counter
# Greedily continues prompts of one length by so many tokens, never ending earlier.
Generate = Callable[[list[list[int]], int], object]


def in_transformers(checkpoint: Path, longest: int, batch: int) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype="auto").eval()

    @torch.no_grad()
    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        output = model(input_ids=torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        for _ in range(new_tokens - 1):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)

    return generate


def in_llama_cpp(checkpoint: Path, longest: int, batch: int) -> Generate:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(checkpoint / "model-f16.gguf")
    options.n_ctx, options.n_parallel, options.n_gpu_layers, options.port = (longest + ROOM) * batch, batch, 0, 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = THREADS
    server = xllamacpp.Server(options)
    address = f"{server.listening_address}/completion"

    def one(prompt: list[int], new_tokens: int) -> object:
        asked = {"prompt": prompt, "n_predict": new_tokens, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        request = urllib.request.Request(address, json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return answer.read(), server  # which serves as long as something refers to it

    requests = ThreadPoolExecutor(batch)
    return lambda prompts, new_tokens: list(requests.map(one, prompts, [new_tokens] * len(prompts)))


def in_vllm(checkpoint: Path, longest: int, batch: int) -> Generate:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its seconds are then those of this process
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; else it wants nearly all memory of the machine
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all its threads share a core
    }
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(checkpoint), trust_remote_code=True, enforce_eager=True, enable_prefix_caching=False,
        max_model_len=longest + ROOM, max_num_seqs=batch,
    )  # fmt: skip

    def generate(prompts: list[list[int]], new_tokens: int) -> object:
        sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        return engine.generate([{"prompt_token_ids": one} for one in prompts], sampling, use_tqdm=False)

    return generate


def in_mlx(checkpoint: Path, longest: int, batch: int) -> Generate:
    from mlx_lm import load, stream_generate

    model, tokenizer = load(str(checkpoint / "mlx"), trust_remote_code=True)
    if batch > 1:
        raise ValueError("one request at a time")
    for eos in list(tokenizer.eos_token_ids):
        tokenizer.eos_token_ids.discard(eos)
    return lambda prompts, new_tokens: list(stream_generate(model, tokenizer, prompts[0], max_tokens=new_tokens))


# Engine: how it is set up, and the format of `python -m flap.export` that it needs, if any.
ENGINES: dict[str, tuple[Callable[[Path, int, int], Generate], str | None]] = {
    "transformers": (in_transformers, None),
    "llama.cpp": (in_llama_cpp, "gguf"),
    "vllm": (in_vllm, None),
    "mlx": (in_mlx, "mlx"),
}


def speeds(generate: Generate, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
    """What users wait for: prefill, until the first new token is there, and decoding, what the others take."""

    def seconds(count: int) -> float:
        start = SECONDS()
        generate(prompts, count)
        return SECONDS() - start

    generate([prompt[:8] for prompt in prompts], 2)  # the first pass also sets things up
    first, whole = seconds(1), seconds(1 + new_tokens)
    tokens, token = sum(map(len, prompts)), (whole - first) / new_tokens
    speed = {"prefill": tokens / first, "decode": len(prompts) / token}
    return speed | {"first_token_ms": 1000 * first, "token_ms": 1000 * token}


def main(engine: str, checkpoint: str, longest: str, batch: str) -> None:
    try:
        generate = ENGINES[engine][0](Path(checkpoint), int(longest), int(batch))
        for line in sys.stdin:
            prompt, new_tokens, count = map(int, line.split())
            prompts = [[10 + (7 * i + 31 * n) % 200 for i in range(prompt)] for n in range(count)]
            answer({**speeds(generate, prompts, new_tokens), "peak": peak_bytes()})
    except Exception as error:  # each engine has errors of its own
        answer({"absent": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
    os._exit(0)  # some engines do not let a process end


def answer(found: dict[str, Any]) -> None:
    """Print what was found on a line of its own, which begins as no other line does."""
    print("\n" + json.dumps(found), flush=True)


def peak_bytes() -> int:
    """The largest that this process's resident memory has been, and that of processes which it waits for."""
    lines = [Path(f"/proc/{process}/status").read_text().splitlines() for process in (os.getpid(), *children())]
    return sum(int(line.split()[1]) * 1024 for text in lines for line in text if line.startswith("VmHWM"))


def children() -> list[int]:
    """The processes that this one has started: vLLM's engine is one."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(process) for task in tasks for process in task.read_text().split()]


if __name__ == "__main__":
    main(*sys.argv[1:])
