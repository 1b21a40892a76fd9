"""Serve a GGUF file with llama.cpp (the wheel xllamacpp) on one thread, and send it requests."""

import json
import urllib.request
from pathlib import Path
from typing import Any


def serve(file: Path, context: int) -> Any:
    """Load a GGUF file in a server of llama.cpp.

    context: the largest number of tokens in a prompt and its answer together.
    """
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx = context
    options.n_parallel = 1
    options.n_gpu_layers = 0
    options.port = 0
    options.cpuparams.n_threads = 1
    options.cpuparams_batch.n_threads = 1
    options.n_threads_http = 1
    options.warmup = False
    return xllamacpp.Server(options)


def complete(server: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Return the server's answer to a request for a completion.

    question: the prompt and the options of the completion, as llama.cpp's server names them.
    """
    request = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        completion: dict[str, Any] = json.load(answer)
    return completion
