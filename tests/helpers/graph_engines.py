"""Compute log-probabilities and greedy continuations with exports in ONNX Runtime and OpenVINO."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# A function that runs one step of the graph. Its arguments are new tokens (1, T) and the number of
# tokens in the cache. It returns logits (T, V), for T tokens and a vocabulary of V.
Step = Callable[[Tensor, int], Tensor]
# A function that returns a step function with an empty cache. All step functions share one loaded
# graph, because loading a graph is slow.
Begin = Callable[[], Step]


def onnx_runtime(folder: Path) -> Begin:
    """Load an exported graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    inputs = session.get_inputs()
    outputs = [one.name for one in session.get_outputs()]

    def begin() -> Step:
        cache = {one.name: empty(one.shape) for one in inputs if "cache" in one.name}

        def step(new: Tensor, cached: int) -> Tensor:
            feed = {
                name: value
                for name, value in arrays(new, cached).items()
                if name in {one.name for one in inputs}
            }
            found = dict(zip(outputs, session.run(outputs, feed | cache), strict=True))
            cache.update({name: found[name.replace("input.", "output.")] for name in cache})
            return torch.from_numpy(found["logits"][0])

        return step

    return begin


def empty(shape: list[int | str]) -> np.ndarray:
    """Return the array for a cache input of the graph at the first step, when the cache is empty.

    shape: the shape of this input in the graph.
    """
    return (
        np.zeros((1, shape[1], 0, shape[3]), np.float32)
        if len(shape) == 4
        else np.zeros(shape, np.int64)
    )


def open_vino(folder: Path) -> Begin:
    """Load an exported graph in OpenVINO, which keeps the cache inside an inference request."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": 1,
    }
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", options)
    names = {one.any_name for one in compiled.inputs}

    def begin() -> Step:
        request = compiled.create_infer_request()

        def step(new: Tensor, cached: int) -> Tensor:
            feed = arrays(new, cached) | {"beam_idx": np.zeros(1, np.int32)}
            found = request.infer({name: value for name, value in feed.items() if name in names})
            return torch.from_numpy(found["logits"][0].copy())

        return step

    return begin


def arrays(new: Tensor, cached: int) -> dict[str, np.ndarray]:
    """Return all inputs of a step except the cache, under the names that both engines use."""
    total = cached + new.shape[1]
    return {
        "input_ids": new.numpy(),
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(cached, total, dtype=np.int64)[None],
    }


def logprobs(step: Step, prompt: Tensor, at_once: int) -> Tensor:
    """Return the log-probabilities after every token of a prompt.

    The first `at_once` tokens are processed in one step. Each further token is processed in a
    separate step, with the cache of the tokens before it.
    """
    parts = [step(prompt[:, :at_once], 0)]
    parts += [step(prompt[:, i : i + 1], i) for i in range(at_once, prompt.shape[1])]
    return torch.cat(parts).log_softmax(-1)


def greedy(step: Step, prompt: Tensor, new_tokens: int, end: int | None) -> list[int]:
    """Continue a prompt with the most probable tokens, but never with `end`, which ends a text."""
    tokens = []
    cached = 0
    new = prompt
    for _ in range(new_tokens):
        logits = step(new, cached)[-1]
        if end is not None:
            logits[end] = -torch.inf
        cached = cached + new.shape[1]
        new = logits.argmax().reshape(1, 1)
        tokens.append(int(new))
    return tokens


ENGINES = {"onnx": onnx_runtime, "openvino": open_vino}
