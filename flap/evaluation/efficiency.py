"""Measure what the dense and the pruned model cost to store and to run, side by side.

Legend: N sequences in a batch · T tokens of the prompt.
"""

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.config import require
from flap.console.progress import progress
from flap.evaluation.base import Comparison, Evaluator, Numbers, Task


@dataclass(frozen=True)
class Efficiency(Evaluator):
    """The size, work, speed and memory of a request: a prompt of `prefill_len` tokens, then `decode_len` new tokens.

    The models are timed in turns, after one warm-up each; a speed or time is the median over `repeats` turns. The
    pruned model also has `<name>_ratio`, pruned / dense (of a speed or time: the median of the turns' ratios).
    """

    batch_size: int = 1
    prefill_len: int = 128
    decode_len: int = 32
    repeats: int = 5

    def __post_init__(self) -> None:
        for name, minimum in (("batch_size", 1), ("prefill_len", 1), ("decode_len", 1), ("repeats", 1)):
            value = getattr(self, name)
            require(value >= minimum, f"eval.efficiency.{name}", value, f"a whole number >= {minimum}")

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Return no tasks: both models are needed at once (`comparisons`)."""
        return []

    def comparisons(self, max_length: int | None) -> list[Comparison]:
        """Return the comparison.

        Raises:
            ValueError: the request does not fit into the model's context.
        """
        length = self.prefill_len + self.decode_len
        if max_length is not None and length > max_length:
            raise ValueError(
                f"eval.efficiency.prefill_len + decode_len = {length}: the model's context ends at {max_length} tokens"
            )
        return [Comparison("efficiency", self.compare, asdict(self))]

    @property
    def decoded_tokens(self) -> int:
        """The tokens that a request decodes after the first new one."""
        return self.batch_size * self.decode_len

    def milliseconds(self, model: PreTrainedModel) -> tuple[float, float]:
        """Return the wall time of one request, and of its decoding after the first new token."""
        prefill_seconds, total_seconds = request_seconds(model, self._prompt(model), 1 + self.decode_len)
        return 1000 * total_seconds, 1000 * (total_seconds - prefill_seconds)

    def timed(self, model: PreTrainedModel) -> Numbers:
        """Return latency and decoding speed by the names of targets: medians of `repeats` requests after a warm-up."""
        times = [self.milliseconds(model) for _ in range(1 + self.repeats)][1:]
        latency, decoding = map(statistics.median, zip(*times, strict=True))
        return {"latency_ms": latency, "tokens_per_second": 1000 * self.decoded_tokens / decoding}

    def compare(self, dense: PreTrainedModel, pruned: PreTrainedModel) -> tuple[Numbers, Numbers]:
        """Return the numbers of the dense and of the pruned model, the latter with the ratios."""
        prompt_NT = self._prompt(dense)
        dense_numbers, pruned_numbers = self._constants(dense, prompt_NT), self._constants(pruned, prompt_NT)
        ratios = {name: pruned_numbers[name] / dense_numbers[name] for name in dense_numbers if dense_numbers[name]}
        turns = [
            (self._speed(dense, prompt_NT), self._speed(pruned, prompt_NT))
            for _ in progress(range(1 + self.repeats), "efficiency")
        ][1:]
        for name in turns[0][0]:
            dense_numbers[name], pruned_numbers[name] = (
                statistics.median(turn[i][name] for turn in turns) for i in (0, 1)
            )
            ratios[name] = statistics.median(pruned_turn[name] / dense_turn[name] for dense_turn, pruned_turn in turns)
        pruned_numbers |= {f"{name}_ratio": value for name, value in ratios.items()}
        return _named(dense_numbers), _named(pruned_numbers)

    def _prompt(self, model: PreTrainedModel) -> Tensor:
        """Return random tokens as the prompt, the same for both models."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.prefill_len)
        return torch.randint(0, model.config.get_text_config().vocab_size, shape, generator=generator).to(model.device)

    def _constants(self, model: PreTrainedModel, prompt_NT: Tensor) -> Numbers:
        """Return what is not timed: parameters, weights in bytes, MACs of the prompt, peak memory in bytes."""
        numbers = {
            "parameters": float(sum(p.numel() for p in model.parameters())),
            "checkpoint_bytes": float(weight_bytes(model)),
            "prefill_macs": float(macs(model, prompt_NT)),
        }
        peak = peak_bytes(model, lambda: generate(model, prompt_NT, self.decode_len))
        return numbers if peak is None else numbers | {"peak_memory_bytes": float(peak)}

    def _speed(self, model: PreTrainedModel, prompt_NT: Tensor) -> Numbers:
        """Return the speeds and the latency of one request: prefill to the first new token, then decoding."""
        prefill_seconds, total_seconds = request_seconds(model, prompt_NT, 1 + self.decode_len)
        return {
            "prefill_tokens_per_second": prompt_NT.numel() / prefill_seconds,
            "decode_tokens_per_second": self.decoded_tokens / (total_seconds - prefill_seconds),
            "latency_ms": 1000 * total_seconds,
        }


def generate(
    model: PreTrainedModel, prompt_NT: Tensor, new_tokens: int, on_token: Callable[[], None] | None = None
) -> None:
    """Decode exactly `new_tokens` tokens greedily, with a KV cache. on_token: called after each of them."""

    def watch(tokens_NT: Tensor, scores: Tensor) -> Tensor:
        if on_token is not None:
            on_token()
        return torch.zeros(len(tokens_NT), dtype=torch.bool, device=tokens_NT.device)  # never stop early

    model.generate(
        prompt_NT,
        attention_mask=torch.ones_like(prompt_NT),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        stopping_criteria=[watch],
    )


def request_seconds(model: PreTrainedModel, prompt_NT: Tensor, new_tokens: int) -> tuple[float, float]:
    """Return the wall time in seconds from the prompt to the first new token and to the last, device work included."""
    times: list[float] = []

    def clock() -> None:
        if len(times) < 2:  # start and first token only: waiting for the device after each token would slow decoding
            _wait_for(model)
            times.append(time.perf_counter())

    clock()
    generate(model, prompt_NT, new_tokens, clock)
    _wait_for(model)
    return times[1] - times[0], time.perf_counter() - times[0]


def _wait_for(model: PreTrainedModel) -> None:
    """Wait until the model's device has finished its work."""
    if model.device.type != "cpu":
        getattr(torch, model.device.type).synchronize()


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the size of a model's weights in bytes; tied tensors count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


@torch.no_grad()
def macs(model: PreTrainedModel, prompt_NT: Tensor) -> int:
    """Return the multiply-accumulates (MACs) of one forward pass over the prompt: half of torch's FLOP count.

    Attention is counted as if there were no causal mask; only the experts that the router chooses are counted.
    """
    kernel = model.config._experts_implementation
    model.config._experts_implementation = "eager"  # torch does not count the grouped kernel's products
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(input_ids=prompt_NT, use_cache=False)
    finally:
        model.config._experts_implementation = kernel
    return int(counter.get_total_flops()) // 2


def peak_bytes(model: PreTrainedModel, work: Callable[[], None]) -> int | None:
    """Return the peak memory of `work` in bytes: the weights, and what it allocates in addition.

    On a GPU, torch counts it; on Linux, the resident set of the process is measured; elsewhere the result is None.
    Anything else in memory, such as another model, is not counted.
    """
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        work()
        return weight_bytes(model) + torch.cuda.max_memory_allocated(model.device) - before
    work()  # a first call, so that one-time allocations and reading mapped weights are not counted
    try:
        ctypes.CDLL(None).malloc_trim(0)  # release free memory: its reuse would not be measured
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
        work()
        return weight_bytes(model) + max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):  # not Linux, or not the GNU C library
        return None


def _resident(field: str) -> int:
    """Return a memory field of /proc/self/status in bytes: VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _named(numbers: Numbers) -> Numbers:
    return {f"efficiency/{name}": value for name, value in numbers.items()}
