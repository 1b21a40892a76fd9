"""Run llama.cpp (the wheel xllamacpp) in a separate process.

A separate process is needed because llama.cpp starts threads, and ends its process on some errors.
The separate process runs this module as a script, which reads the fields of `Questions` as JSON
from the standard input, and writes the answers to the file that is named by the argument of the
script.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Questions:
    """The outputs that llama.cpp has to compute with a GGUF file."""

    gguf: str
    # Tokens of a text. For every prefix of these tokens, llama.cpp computes the log-probabilities
    # of all ids of the vocabulary as the next token.
    tokens: Sequence[int] = ()
    # For this many of the shortest prefixes, no log-probabilities are computed. With a large
    # vocabulary, log-probabilities take long to write and to read.
    first: int = 0
    # The id of a token whose text is valid UTF-8. llama.cpp is forced to sample this token, because
    # it reports no probabilities while the sampled text ends in the middle of a character.
    plain: int = 0
    # A prompt, and the number of tokens by which llama.cpp continues it greedily.
    prompt: Any = ""
    new_tokens: int = 0
    # Texts that llama.cpp tokenizes.
    texts: Sequence[str] = ()


def llama_cpp(gguf: Path, **questions: Any) -> dict[str, Any]:
    """Return llama.cpp's outputs for a GGUF file.

    questions: fields of `Questions`.
    """
    asked = Questions(str(gguf), **questions)
    with tempfile.NamedTemporaryFile("r") as answers:
        done = subprocess.run(
            [sys.executable, __file__, answers.name],
            input=json.dumps(asdict(asked)),
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
    options.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.cpuparams.n_threads = 1
    options.cpuparams_batch.n_threads = 1
    options.n_threads_http = 1
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


def answer(asked: Questions) -> dict[str, Any]:
    server = serve(asked.gguf)
    continued = continuation(server, asked) if asked.new_tokens else {}
    return {
        "logprobs": logprobs(server, asked),
        "greedy": continued.get("tokens"),
        "text": continued.get("content"),
        "ids": [token_ids(server, text) for text in asked.texts],
    }


def continuation(server: Any, asked: Questions) -> dict[str, Any]:
    greedy = {
        "n_predict": asked.new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_tokens": True,
        "prompt": asked.prompt,
    }
    return ask(server, "/completion", greedy)


def logprobs(server: Any, asked: Questions) -> list[list[float]]:
    once = {"n_predict": 1, "n_probs": 100_000, "logit_bias": [[asked.plain, 1000.0]]}
    rows = []
    for i in range(asked.first, len(asked.tokens)):
        prefix = asked.tokens[: i + 1]
        completion = ask(server, "/completion", once | {"prompt": prefix})
        [predicted] = completion["completion_probabilities"]
        by_id = sorted(predicted["top_logprobs"], key=lambda token: token["id"])
        rows.append([token["logprob"] for token in by_id])
    return rows


def token_ids(server: Any, text: str) -> list[int]:
    encode = {"add_special": True, "parse_special": True, "content": text}
    return ask(server, "/tokenize", encode)["tokens"]


if __name__ == "__main__":
    answers = answer(Questions(**json.load(sys.stdin)))
    Path(sys.argv[1]).write_text(json.dumps(answers))
