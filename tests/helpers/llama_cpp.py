"""Real llama.cpp (the wheel xllamacpp), in a process of its own: it starts threads and ends the process on some errors.

As a script it reads a job from its standard input and writes the answers to the file that its argument names.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def llama_cpp(gguf: Path, **questions: Any) -> dict[str, Any]:
    """What llama.cpp makes of a file; `questions` are the arguments of `answer`."""
    with tempfile.NamedTemporaryFile("r") as answers:
        done = subprocess.run(
            [sys.executable, __file__, answers.name],
            input=json.dumps({"gguf": str(gguf)} | questions),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.load(answers)


def serve(gguf: str) -> Any:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = gguf
    options.n_ctx = 512
    options.n_parallel = 1
    options.n_gpu_layers = 0
    options.port = 0
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = options.n_threads_http = 1
    options.cache_ram_mib = 0
    options.warmup = False
    return xllamacpp.Server(options)


def ask(server: Any, path: str, question: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.listening_address + path,
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def answer(
    gguf: str,
    tokens: Sequence[int] = (),
    plain: int = 0,
    new_tokens: int = 0,
    prompt: Any = "",
    texts: Sequence[str] = (),
    first: int = 0,
) -> dict[str, Any]:
    """Log-probabilities of every id after every prefix of `tokens`; the greedy continuation of a prompt; ids of texts.

    first: so many tokens are only read; log-probabilities of a large vocabulary take long to be written and read.
    plain: any id whose text is whole UTF-8. It is the one to be sampled, whatever its probability, because llama.cpp
    holds a part of a character back, and with it the probabilities at that position.
    """
    server = serve(gguf)
    once = {"n_predict": 1, "n_probs": 100_000, "logit_bias": [[plain, 1000.0]]}
    greedy = {
        "n_predict": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "prompt": prompt,
    }
    probed = [
        ask(server, "/completion", once | {"prompt": tokens[: i + 1]})
        for i in range(first, len(tokens))
    ]
    continued = ask(server, "/completion", greedy) if new_tokens else {}
    encode = {"add_special": True, "parse_special": True}
    return {
        "logprobs": [_by_id(one["completion_probabilities"][0]["top_logprobs"]) for one in probed],
        "greedy": continued.get("tokens"),
        "text": continued.get("content"),
        "ids": [ask(server, "/tokenize", encode | {"content": text})["tokens"] for text in texts],
    }


def _by_id(found: list[dict[str, Any]]) -> list[float]:
    return [one["logprob"] for one in sorted(found, key=lambda one: one["id"])]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(answer(**json.load(sys.stdin))))
