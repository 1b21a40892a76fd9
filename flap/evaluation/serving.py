"""How long a user waits, for the first token and for each further one, with the dense and the pruned model in turns."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from math import prod
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.config import require
from flap.evaluation.base import Evaluator, Numbers, SideBySide, Task
from flap.evaluation.efficiency import Efficiency
from flap.evaluation.engine_process import MODULES, Engine, check_installed
from flap.evaluation.errors import standard_error
from flap.models import distinct_parameters
from flap.models.weights import check_weights
from flap.storage.progress import progress

TRANSFORMERS = "transformers"
FILES = {"llama.cpp": "gguf", "vllm": "hf"}  # the form of a checkpoint that an engine reads
Time = Callable[[int, int], Numbers]  # of a batch size and the tokens of a prompt


@dataclass(frozen=True)
class Serving(Evaluator):
    """The milliseconds to the first new token and for each further one; lower is better.

    `serving/first_token_ms@8x1024` and `serving/token_ms@8x1024`, of 8 prompts of 1,024 tokens at once: means over
    `repeats` turns with their standard errors; the models take turns, after one warm-up each. `<name>_ratio` is the
    median of the turns' pruned / dense. `<name>_of_ideal` is the speed-up over that by parameters,
    (dense ms / pruned ms) / (dense parameters / pruned parameters): 1 if all that they promise is there; higher is
    better. Numbers of another engine than transformers have its name, `serving/vllm_token_ms@8x1024`. It reads the
    saved checkpoints, each in a process of its own; with one thread its seconds are those of the processor.

    Command: python -m flap eval=[serving] eval.serving.engines=[transformers,llama.cpp]
    """

    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])  # sequences at once; 1 or more each
    prompt_lens: list[int] = field(default_factory=lambda: [128, 1024])  # tokens of a prompt; 1 or more each
    decode_len: int = 16  # new tokens after the first one; 1 or more
    repeats: int = 5  # turns that are timed; 2 or more
    engines: list[str] = field(default_factory=lambda: [TRANSFORMERS])  # transformers, llama.cpp, vllm
    python: dict[str, str] = field(default_factory=dict)  # the interpreter of an engine; else that of this program

    def __post_init__(self) -> None:
        known = [TRANSFORMERS, *MODULES]
        for name in (*self.engines, *self.python):
            require(name in known, "eval.serving.engines", name, f"some of {', '.join(known)}")
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
        """Return a measurement of both models for each engine.

        Raises:
            ValueError: a request does not fit into the model's context, or an engine is not installed.
        """
        if max_length is not None and self.longest > max_length:
            raise ValueError(
                f"eval.serving.prompt_lens + decode_len = {self.longest}: the model's context ends at {max_length} "
                "tokens"
            )
        return [self._comparison(engine) for engine in self.engines]

    @property
    def longest(self) -> int:
        """The tokens of the longest prompt and its answer."""
        return max(self.prompt_lens) + self.decode_len

    def _comparison(self, engine: str) -> SideBySide:
        identity = {name: value for name, value in asdict(self).items() if name not in ("engines", "python")}
        if engine == TRANSFORMERS:
            return SideBySide("serving", self.compare, identity)
        check_installed(engine, self.python.get(engine))
        return SideBySide(f"serving {engine}", partial(self.compare_files, engine), identity, FILES[engine])

    def compare(self, dense: PreTrainedModel, pruned: PreTrainedModel) -> tuple[Numbers, Numbers]:
        """Return the numbers of the dense and of the pruned model, the latter with the ratios."""
        models = dense, pruned
        sizes = [sum(parameter.numel() for parameter in distinct_parameters(model)) for model in models]
        return self._in_turns("serving/", [partial(self._times, model) for model in models], sizes)

    def compare_files(self, engine: str, dense: Path, pruned: Path) -> tuple[Numbers, Numbers]:
        """Return the numbers of both checkpoints in another engine."""
        python, batch_size = self.python.get(engine), max(self.batch_sizes)
        with ExitStack() as processes:
            opened = [
                processes.enter_context(Engine.open(engine, python, folder, self.longest, batch_size))
                for folder in (dense, pruned)
            ]
            times = [partial(one.times, decode_len=self.decode_len) for one in opened]
            return self._in_turns(f"serving/{engine}_", times, [_parameters(folder) for folder in (dense, pruned)])

    def _in_turns(self, prefix: str, models: Sequence[Time], sizes: Sequence[int]) -> tuple[Numbers, Numbers]:
        found = Numbers(), Numbers()
        for batch_size, prompt_len in product(self.batch_sizes, self.prompt_lens):
            turns = progress(range(1 + self.repeats), f"{prefix.strip('_/')} {batch_size}x{prompt_len}")
            timed = [[time(batch_size, prompt_len) for time in models] for _ in turns][1:]
            for what in timed[0][0]:
                name, times = (
                    f"{prefix}{what}@{batch_size}x{prompt_len}",
                    [[one[what] for one in turn] for turn in timed],
                )
                for numbers, values in zip(found, zip(*times, strict=True), strict=True):
                    numbers.update({name: statistics.mean(values), f"{name}_stderr": standard_error(values)})
                ratio = statistics.median(after / before for before, after in times)
                found[1].update({f"{name}_ratio": ratio, f"{name}_of_ideal": sizes[1] / sizes[0] / ratio})
        return found

    def _times(self, model: PreTrainedModel, batch_size: int, prompt_len: int) -> Numbers:
        latency, decoding = Efficiency(batch_size, prompt_len, self.decode_len).milliseconds(model)
        return {"first_token_ms": latency - decoding, "token_ms": decoding / self.decode_len}


def _parameters(checkpoint: Path) -> int:
    """Return how many parameters are in the files of a checkpoint."""
    return sum(prod(shape) for shapes in check_weights(checkpoint).values() for shape in shapes.values())
