"""Measure the size, computation, speed and memory of the dense and the pruned model.

Legend: the suffix of a tensor's name lists its axes (N: prompts in a batch, T: tokens of a prompt).
"""

import statistics
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.config import require_counts
from flap.evaluation.base import Evaluator, Measurement, Numbers, Task
from flap.evaluation.request_cost import generate, macs, peak_bytes, request_seconds, weight_bytes
from flap.models import count_parameters, running_device
from flap.runtime.agenda import Workload
from flap.runtime.progress import progress


@dataclass(frozen=True)
class Efficiency(Evaluator):
    """The size of the dense and the pruned model, and the cost of a request to each of them.

    A request is a batch of prompts of `prefill_len` random tokens. In a timed request, the model
    generates for each prompt a first new token, and then `decode_len` further tokens. In the
    request that measures the peak memory, the model generates `decode_len` tokens for each prompt.

    The models are timed in turns. In each turn, the dense model runs one timed request, and then
    the pruned model runs the same request. The first turn is a warm-up. A speed or a time is the
    median over the `repeats` turns after the warm-up. Each value below, such as `parameters`, also
    has a ratio, such as `parameters_ratio`: the value of the pruned model, divided by the value of
    the dense model. For a speed or a time, the ratio is computed for each turn, and the median of
    these ratios is reported.

    Lower is better for `parameters`, `checkpoint_bytes` (bytes of the weights), `prefill_macs`
    (multiply-accumulates to read the prompts), `peak_memory_bytes` and `latency_ms` (time of the
    whole request). Higher is better for `prefill_tokens_per_second` (tokens of all prompts, divided
    by the seconds until the first new token) and `decode_tokens_per_second` (further tokens of all
    prompts, divided by the seconds from the first new token to the end).

    Command: python -m flap eval=[efficiency] eval.efficiency.prefill_len=128
    """

    batch_size: int = 1  # prompts in a batch; 1 or more
    prefill_len: int = 128  # tokens of a prompt; 1 or more
    decode_len: int = 32  # new tokens after the first new token; 1 or more
    # number of timed requests for each model, not counting the warm-up; 1 or more
    repeats: int = 5

    def __post_init__(self) -> None:
        least = dict.fromkeys(asdict(self), 1)
        require_counts(self, "eval.efficiency", **least)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Return one task, which measures both models.

        Raises:
            ValueError: the request does not fit into the model's context.
        """
        length = self.prefill_len + self.decode_len
        if max_length is not None and length > max_length:
            raise ValueError(
                f"eval.efficiency.prefill_len + decode_len = {length}: the model's "
                f"context ends at {max_length} tokens"
            )
        # Each model runs the request at most `repeats` + 4 times: once as a warm-up, `repeats`
        # times to measure speeds, once to count multiply-accumulates, and twice to measure the peak
        # memory.
        requests = 2 * self.batch_size * (self.repeats + 4)
        workload = Workload(requests * self.prefill_len, requests * self.decode_len)
        about = asdict(self)
        return [Task("efficiency", self.compare, about, side_by_side=True, workload=workload)]

    def compare(self, dense: PreTrainedModel, pruned: PreTrainedModel) -> Measurement:
        """Measure both models, and return both models' results and the ratios pruned / dense.

        The field `numbers` of the measurement has the results of the pruned model and the ratios,
        and the field `beside` has the results of the dense model.
        """
        of_dense = self._constants(dense)
        of_pruned = self._constants(pruned)
        ratios = Numbers()
        for name, value in of_dense.items():
            if value:
                ratios[f"{name}_ratio"] = of_pruned[name] / value

        turns = [
            (self._speed(dense), self._speed(pruned))
            for _ in progress(range(1 + self.repeats), "efficiency")
        ]
        for name in turns[0][0]:
            pairs = [(before[name], after[name]) for before, after in turns[1:]]
            of_dense[name] = statistics.median(before for before, _ in pairs)
            of_pruned[name] = statistics.median(after for _, after in pairs)
            ratios[f"{name}_ratio"] = statistics.median(after / before for before, after in pairs)
        return Measurement(of_pruned | ratios, beside=of_dense)

    def _prompt(self, model: PreTrainedModel) -> Tensor:
        generator = torch.Generator().manual_seed(0)  # the same prompts for both models
        shape = (self.batch_size, self.prefill_len)
        vocab_size = model.config.get_text_config().vocab_size
        prompt_NT = torch.randint(0, vocab_size, shape, generator=generator)
        return prompt_NT.to(running_device(model))

    def _constants(self, model: PreTrainedModel) -> Numbers:
        prompt_NT = self._prompt(model)
        numbers = {
            "efficiency/parameters": float(count_parameters(model)),
            "efficiency/checkpoint_bytes": float(weight_bytes(model)),
            "efficiency/prefill_macs": float(macs(model, prompt_NT)),
        }
        peak = peak_bytes(model, lambda: generate(model, prompt_NT, self.decode_len))
        return numbers if peak is None else numbers | {"efficiency/peak_memory_bytes": float(peak)}

    def _speed(self, model: PreTrainedModel) -> Numbers:
        prefill, total = request_seconds(model, self._prompt(model), 1 + self.decode_len)
        read = self.batch_size * self.prefill_len  # tokens of all prompts
        written = self.batch_size * self.decode_len
        return {
            "efficiency/prefill_tokens_per_second": read / prefill,
            "efficiency/decode_tokens_per_second": written / (total - prefill),
            "efficiency/latency_ms": 1000 * total,
        }
