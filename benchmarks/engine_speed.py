"""How fast one checkpoint is in one engine: `python benchmarks/engine_speed.py ENGINE CHECKPOINT PROMPT NEW`.

PROMPT and NEW are numbers of tokens. Printed as the last line, as JSON: tokens a second of prefill and of decoding, and
the peak memory in bytes; or, under "absent", why there are none. The interpreter needs the engine alone, not flap.
"""

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

Speeds = dict[str, float]  # prefill and decode in tokens a second


def in_transformers(checkpoint: Path, prompt: list[int], new_tokens: int) -> Speeds:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype="auto").eval()
    ids = torch.tensor([prompt])
    with torch.no_grad():
        model(input_ids=ids[:, :8])  # the first pass also sets things up
        start = time.perf_counter()
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        middle = time.perf_counter()
        for _ in range(new_tokens):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        end = time.perf_counter()
    return {"prefill": len(prompt) / (middle - start), "decode": new_tokens / (end - middle)}


def in_llama_cpp(checkpoint: Path, prompt: list[int], new_tokens: int) -> Speeds:
    import xllamacpp

    options, threads = xllamacpp.CommonParams(), int(os.environ["OMP_NUM_THREADS"])
    options.model.path = str(checkpoint / "model-f16.gguf")
    options.n_ctx, options.n_parallel, options.n_gpu_layers, options.port = 2048, 1, 0, 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(options)
    asked = {"prompt": prompt, "n_predict": new_tokens, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
    address = f"{server.listening_address}/completion"
    request = urllib.request.Request(address, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        timings = json.load(answer)["timings"]
    return {"prefill": timings["prompt_per_second"], "decode": timings["predicted_per_second"]}


def in_vllm(checkpoint: Path, prompt: list[int], new_tokens: int) -> Speeds:
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(checkpoint), trust_remote_code=True, enforce_eager=True, enable_prefix_caching=False, max_model_len=2048,
        max_num_seqs=1,
    )  # fmt: skip

    def seconds(tokens: list[int], count: int) -> float:
        start = time.perf_counter()
        engine.generate(
            {"prompt_token_ids": tokens},
            SamplingParams(temperature=0, max_tokens=count, ignore_eos=True),
            use_tqdm=False,
        )
        return time.perf_counter() - start

    seconds(prompt[:8], 2)
    first, whole = seconds(prompt, 1), seconds(prompt, 1 + new_tokens)
    return {"prefill": len(prompt) / first, "decode": new_tokens / (whole - first)}


def in_mlx(checkpoint: Path, prompt: list[int], new_tokens: int) -> Speeds:
    from mlx_lm import load, stream_generate

    model, tokenizer = load(str(checkpoint / "mlx"), trust_remote_code=True)
    for eos in list(tokenizer.eos_token_ids):
        tokenizer.eos_token_ids.discard(eos)
    *_, last = stream_generate(model, tokenizer, prompt, max_tokens=new_tokens)
    return {"prefill": last.prompt_tps, "decode": last.generation_tps}


# Engine: how it is measured, and the format of `python -m flap.export` that it needs, if any.
ENGINES: dict[str, tuple[Callable[[Path, list[int], int], Speeds], str | None]] = {
    "transformers": (in_transformers, None),
    "llama.cpp": (in_llama_cpp, "gguf"),
    "vllm": (in_vllm, None),
    "mlx": (in_mlx, "mlx"),
}


def main(engine: str, checkpoint: str, prompt: str, new_tokens: str) -> None:
    tokens = [100 + 7 * i % 1000 for i in range(int(prompt))]
    try:
        found: dict[str, Any] = {**ENGINES[engine][0](Path(checkpoint), tokens, int(new_tokens))}
    except Exception as error:  # each engine has errors of its own
        found = {"absent": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    print("\n" + json.dumps(found | {"peak": peak_bytes()}), flush=True)
    os._exit(0)  # some engines do not let a process end


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
