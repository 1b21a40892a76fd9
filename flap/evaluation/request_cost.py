"""Measure the cost of one request to a model: seconds, multiply-accumulates and bytes of memory.

Legend: the suffix of a tensor's name lists its axes (N: prompts in a batch, T: tokens of a prompt).
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, PreTrainedModel

from flap.models import distinct_parameters, running_device
from flap.models.devices import give_back_freed
from flap.runtime.agenda import Speed
from flap.runtime.temporary_state import replaced


def generate(
    model: PreTrainedModel,
    prompt_NT: Tensor,
    new_tokens: int,
    on_token: Callable[[], None] | None = None,
) -> None:
    """Decode exactly `new_tokens` tokens for each prompt, greedily and with a KV cache.

    on_token: a function that is called after each decoding step. A step adds one token to the
        answer to every prompt.

    The generation config of the model is ignored, because settings such as beam search, or decoding
    without a cache, would change the cost of the request.
    """

    def watch(tokens_NT: Tensor, scores: Tensor) -> Tensor:
        if on_token is not None:
            on_token()
        # never stop a sequence early
        return torch.zeros(len(tokens_NT), dtype=torch.bool, device=tokens_NT.device)

    with replaced("generation_config", GenerationConfig(), model):
        model.generate(
            prompt_NT,
            attention_mask=torch.ones_like(prompt_NT),
            do_sample=False,
            use_cache=True,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            stopping_criteria=[watch],
        )


def request_seconds(
    model: PreTrainedModel, prompt_NT: Tensor, new_tokens: int
) -> tuple[float, float]:
    """Return the seconds from the start of a request to its first and to its last new token.

    Both are wall-clock times. Before the clock is read, the device is synchronised, so that it has
    finished all kernels that were launched.
    """
    times: list[float] = []

    def clock() -> None:
        # record the time only at the start and after the first new token: waiting for the device
        # after each token would slow decoding down
        if len(times) < 2:
            _wait_for(model)
            times.append(time.perf_counter())

    clock()
    generate(model, prompt_NT, new_tokens, clock)
    _wait_for(model)
    return times[1] - times[0], time.perf_counter() - times[0]


def measured_speed(model: PreTrainedModel) -> Speed:
    """Return the speed of a model, measured with one short request of eight sequences."""
    prompt_NT = torch.ones(8, 32, dtype=torch.long, device=running_device(model))
    new_tokens = 9
    request_seconds(model, prompt_NT, 2)  # a warm-up: the first request is the slowest
    prefill, total = request_seconds(model, prompt_NT, new_tokens)
    return Speed(
        read=prefill / prompt_NT.numel(),
        written=(total - prefill) / (len(prompt_NT) * (new_tokens - 1)),
    )


def _wait_for(model: PreTrainedModel) -> None:
    device = running_device(model)
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the size of a model's weights in bytes. Tied tensors count once."""
    return sum(parameter.nbytes for parameter in distinct_parameters(model))


@torch.no_grad()
def macs(model: PreTrainedModel, prompt_NT: Tensor) -> int:
    """Return the number of multiply-accumulates (MACs) of one forward pass over the prompts.

    The result is half the number of floating-point operations (FLOPs) that torch counts. Attention
    is counted as if there were no causal mask. In a mixture of experts, only the experts that the
    router chooses for a token are counted.
    """
    # use transformers' eager implementation of experts, because torch's counter does not count the
    # matrix products of the grouped kernel for experts
    eager = replaced("_experts_implementation", "eager", model.config)
    with eager, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=prompt_NT, use_cache=False)
    return int(counter.get_total_flops()) // 2


def peak_bytes(model: PreTrainedModel, work: Callable[[], None]) -> int | None:
    """Return the peak memory in bytes while `work` runs; None if it cannot be measured.

    The peak memory is the size of the model's weights, plus the largest amount of memory that
    `work` allocates at one time. On GPUs, torch counts the allocated memory. On a CPU, the
    allocated memory is the growth of the process's resident set, which can be measured only under
    Linux. Other data that was in memory before the call, such as another model, is not counted.
    """
    if running_device(model).type == "cuda":
        gpus = range(torch.cuda.device_count())
        before = sum(map(torch.cuda.memory_allocated, gpus))
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        work()
        return weight_bytes(model) + sum(map(torch.cuda.max_memory_allocated, gpus)) - before
    # a warm-up call, so that the measured call makes no one-time allocations and reads no mapped
    # weights from disk
    work()
    try:
        # give freed memory back to the system; otherwise, `work` could reuse this memory, and the
        # growth of the resident set would not include it
        give_back_freed()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
        before = _peak_resident()
        work()
        return weight_bytes(model) + _peak_resident() - before
    except OSError:  # the machine does not run Linux
        return None


def _peak_resident() -> int:
    """Return the peak size of the process's resident set in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
