"""What a model costs to store and to run, dense and pruned measured side by side.

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

from flap.evaluation.base import Comparison, Evaluator, Numbers, Task
from flap.progress import progress


@dataclass(frozen=True)
class Efficiency(Evaluator):
    """Size, work, speed and memory of one request: a prompt of `prefill_len` tokens, then `decode_len` new ones.

    The models take turns, after one warm-up each; a number is the median over `repeats`, and `<name>_ratio` beside
    the pruned one is pruned / dense (of a speed or time: the median of the turns' ratios).
    """

    batch_size: int = 1
    prefill_len: int = 128
    decode_len: int = 32
    repeats: int = 5

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("prefill_len", 1), ("decode_len", 1), ("repeats", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"eval.efficiency.{name}={getattr(self, name)}: expected a whole number >= {least}")

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        return []

    def comparisons(self, max_length: int | None) -> list[Comparison]:
        length = self.prefill_len + self.decode_len
        if max_length is not None and length > max_length:
            raise ValueError(
                f"eval.efficiency.prefill_len + decode_len = {length}: the model's context ends at {max_length} tokens"
            )
        return [Comparison("efficiency", self.compare, asdict(self))]

    def compare(self, dense: PreTrainedModel, pruned: PreTrainedModel) -> tuple[Numbers, Numbers]:
        """All numbers of both models, and on the pruned side their ratios."""
        prompt_NT = self._prompt(dense)
        of_dense, of_pruned = self._constants(dense, prompt_NT), self._constants(pruned, prompt_NT)
        ratios = {name: of_pruned[name] / of_dense[name] for name in of_dense if of_dense[name]}
        turns = [
            (self._speed(dense, prompt_NT), self._speed(pruned, prompt_NT))
            for _ in progress(range(1 + self.repeats), "efficiency")
        ][1:]
        for name in turns[0][0]:
            of_dense[name], of_pruned[name] = (statistics.median(turn[i][name] for turn in turns) for i in (0, 1))
            ratios[name] = statistics.median(second[name] / first[name] for first, second in turns)
        of_pruned |= {f"{name}_ratio": value for name, value in ratios.items()}
        return _named(of_dense), _named(of_pruned)

    def _prompt(self, model: PreTrainedModel) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.prefill_len)
        return torch.randint(0, model.config.vocab_size, shape, generator=generator).to(model.device)

    def _constants(self, model: PreTrainedModel, prompt_NT: Tensor) -> Numbers:
        """What does not depend on the clock: parameters, bytes of weights, MACs of the prompt, memory of a request."""
        known = {
            "parameters": float(sum(p.numel() for p in model.parameters())),
            "checkpoint_bytes": float(weight_bytes(model)),
            "prefill_macs": float(macs(model, prompt_NT)),
        }
        peak = peak_bytes(model, lambda: generate(model, prompt_NT, self.decode_len))
        return known if peak is None else known | {"peak_memory_bytes": float(peak)}

    def _speed(self, model: PreTrainedModel, prompt_NT: Tensor) -> Numbers:
        """One turn: a whole request; its first new token ends the prefill, and what follows is the decoding."""
        first, whole = request_seconds(model, prompt_NT, 1 + self.decode_len)
        return {
            "prefill_tokens_per_second": prompt_NT.numel() / first,
            "decode_tokens_per_second": self.batch_size * self.decode_len / (whole - first),
            "latency_ms": 1000 * whole,
        }


def generate(
    model: PreTrainedModel, prompt_NT: Tensor, new_tokens: int, watcher: Callable[[], None] | None = None
) -> None:
    """Greedy decoding of exactly so many tokens, with a KV cache; `watcher` is called after each of them."""

    def watch(tokens_NT: Tensor, scores: Tensor) -> Tensor:
        if watcher is not None:
            watcher()
        return torch.zeros(len(tokens_NT), dtype=torch.bool, device=tokens_NT.device)  # nobody stops early

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
    """Wall time from the prompt to the first new token and to the last one, until the device is done with it."""
    times: list[float] = []

    def clock() -> None:
        if len(times) < 2:  # start and first token: those between it and the last one need not wait for the device
            _wait_for(model)
            times.append(time.perf_counter())

    clock()
    generate(model, prompt_NT, new_tokens, clock)
    _wait_for(model)
    return times[1] - times[0], time.perf_counter() - times[0]


def _wait_for(model: PreTrainedModel) -> None:
    if model.device.type != "cpu":
        getattr(torch, model.device.type).synchronize()


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights in a checkpoint: tied tensors once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


@torch.no_grad()
def macs(model: PreTrainedModel, prompt_NT: Tensor) -> int:
    """Multiply-accumulates of one forward pass over the prompt, by torch's own count of its matrix products.

    Attention is counted without the causal mask's savings; of experts, those that the router chooses.
    """
    kernel = model.config._experts_implementation
    model.config._experts_implementation = "eager"  # the grouped kernel's products are not counted
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(input_ids=prompt_NT, use_cache=False)
    finally:
        model.config._experts_implementation = kernel
    return int(counter.get_total_flops()) // 2


def peak_bytes(model: PreTrainedModel, work: Callable[[], None]) -> int | None:
    """The weights and what some work takes on top of them, in bytes: on the GPU as torch counts it, on Linux as the
    process's resident set; None where neither is there. What else lies in memory, such as another model, is left out.
    """
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        work()
        return weight_bytes(model) + torch.cuda.max_memory_allocated(model.device) - before
    work()  # what the first call alone allocates, and weights that are mapped and not read yet, count for nothing
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what is free, or its reuse would not show
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = _resident("VmRSS")
        work()
        return weight_bytes(model) + max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):  # not Linux, or not the GNU C library
        return None


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(which)]
    return int(line.split()[1]) * 1024


def _named(numbers: Numbers) -> Numbers:
    return {f"efficiency/{name}": value for name, value in numbers.items()}
