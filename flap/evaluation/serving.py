"""How long a user waits, for the first token and for each further one, with the dense and the pruned model in turns."""

import statistics
from dataclasses import dataclass, field
from itertools import product

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.config import require
from flap.evaluation.base import Evaluator, Numbers, SideBySide, Task
from flap.evaluation.efficiency import Efficiency
from flap.evaluation.errors import standard_error
from flap.models import distinct_parameters
from flap.storage.progress import progress


@dataclass(frozen=True)
class Serving(Evaluator):
    """The milliseconds to the first new token and for each further one; lower is better.

    `serving/first_token_ms@8x1024` and `serving/token_ms@8x1024`, of 8 prompts of 1,024 tokens at once: means over
    `repeats` turns with their standard errors; the models take turns, after one warm-up each. `<name>_ratio` is the
    median of the turns' pruned / dense. `<name>_of_ideal` is the speed-up over that by parameters,
    (dense ms / pruned ms) / (dense parameters / pruned parameters): 1 if all that they promise is there; higher is
    better. In transformers; of other engines: benchmarks/engines.py.

    Command: python -m flap eval=[serving] eval.serving.prompt_lens=[128]
    """

    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])  # sequences at once; 1 or more each
    prompt_lens: list[int] = field(default_factory=lambda: [128, 1024])  # tokens of a prompt; 1 or more each
    decode_len: int = 16  # new tokens after the first one; 1 or more
    repeats: int = 5  # turns that are timed; 2 or more

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "prompt_lens"):
            values = getattr(self, name)
            valid = bool(values) and all(type(value) is int and value >= 1 for value in values)
            require(valid, f"eval.serving.{name}", values, "a list of whole numbers >= 1, as [1, 8]")
        require(self.decode_len >= 1, "eval.serving.decode_len", self.decode_len, "a whole number >= 1")
        require(self.repeats >= 2, "eval.serving.repeats", self.repeats, "a whole number >= 2")

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Return no tasks: both models are needed at once (`comparisons`)."""
        return []

    def comparisons(self, max_length: int | None) -> list[SideBySide]:
        """Return the measurement of both models.

        Raises:
            ValueError: a request does not fit into the model's context.
        """
        longest = max(self.prompt_lens) + self.decode_len
        if max_length is not None and longest > max_length:
            raise ValueError(
                f"eval.serving.prompt_lens + decode_len = {longest}: the model's context ends at {max_length} tokens"
            )
        options = {"batch_sizes": list(self.batch_sizes), "prompt_lens": list(self.prompt_lens)}
        identity = {**options, "decode_len": self.decode_len, "repeats": self.repeats}
        return [SideBySide("serving", self.compare, identity)]

    def compare(self, dense: PreTrainedModel, pruned: PreTrainedModel) -> tuple[Numbers, Numbers]:
        """Return the numbers of the dense and of the pruned model, the latter with the ratios."""
        models, found = (dense, pruned), (Numbers(), Numbers())
        sizes = [sum(parameter.numel() for parameter in distinct_parameters(model)) for model in models]
        for batch_size, prompt_len in product(self.batch_sizes, self.prompt_lens):
            request = Efficiency(batch_size, prompt_len, self.decode_len)
            rounds = progress(range(1 + self.repeats), f"serving {batch_size}x{prompt_len}")
            turns = [[self._times(request, model) for model in models] for _ in rounds][1:]
            for what in turns[0][0]:
                name, times = (
                    f"serving/{what}@{batch_size}x{prompt_len}",
                    [[one[what] for one in turn] for turn in turns],
                )
                for numbers, values in zip(found, zip(*times, strict=True), strict=True):
                    numbers.update({name: statistics.mean(values), f"{name}_stderr": standard_error(values)})
                ratio = statistics.median(after / before for before, after in times)
                found[1].update({f"{name}_ratio": ratio, f"{name}_of_ideal": sizes[1] / sizes[0] / ratio})
        return found

    def _times(self, request: Efficiency, model: PreTrainedModel) -> Numbers:
        latency, decoding = request.milliseconds(model)
        return {"first_token_ms": latency - decoding, "token_ms": decoding / self.decode_len}
