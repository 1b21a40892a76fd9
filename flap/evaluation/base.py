"""The base class of evaluators.

An evaluator creates its tasks before the model is loaded, so that bad input fails early.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from flap.data import Text
from flap.data.named_prompts import PASSAGES_OF
from flap.data.overlap import Document, Words
from flap.models import PlacedModel
from flap.runtime.agenda import Workload

Numbers = dict[str, float]
Documents = dict[str, list[float]]
Better = Literal["lower", "higher"]
# suffix of a task's origin if its prompts go through the chat template
TEMPLATED = "; through the chat template"


@dataclass(frozen=True)
class Measurement:
    """Named numbers, such as {"wikitext2/perplexity@2048": 5.68}, with the values of documents."""

    numbers: Numbers = field(default_factory=dict)
    # For each number, its values for all documents or windows. The number is the mean of its
    # values. The values of a perplexity come from a linear approximation
    # (`flap.evaluation.perplexity`).
    documents: Documents = field(default_factory=dict)
    # whether higher or lower values of a number are better; unknown numbers are missing
    better: dict[str, Better] = field(default_factory=dict)
    # numbers of the dense model, if both models were measured side by side
    beside: Numbers = field(default_factory=dict)

    def without(self, names: Collection[str]) -> "Measurement":
        """Return this measurement without some of its numbers."""
        parts = {}
        for part, values in vars(self).items():
            parts[part] = {name: value for name, value in values.items() if name not in names}
        return Measurement(**parts)

    def __or__(self, other: "Measurement") -> "Measurement":
        """Return this measurement with the numbers of another measurement added."""
        parts = {part: values | getattr(other, part) for part, values in vars(self).items()}
        return Measurement(**parts)


@dataclass(frozen=True)
class Leaving:
    """How a task leaves out documents that are in the calibration or training texts of the run."""

    # config key and value that name the task, such as "eval.generation.tasks=sciq_answers"
    field: str
    documents: Callable[[], Sequence[Document]]  # returns the texts that identify each document
    # returns the task without the documents that have these indices
    without: Callable[[frozenset[int]], "Task"]
    words: Words  # splits a text into the words that are compared


@dataclass(frozen=True)
class Task:
    """A measurement that can be run on a model.

    Usually, `run` takes one model. If the task has a `reference`, `run` takes the pruned model and
    the result of `reference` for the dense model. If `side_by_side` is true, `run` takes the dense
    and the pruned model as transformers models.
    """

    name: str
    run: Callable[..., Measurement]
    # Everything that the numbers depend on, except the model. The batch size is included, because
    # kernels add numbers in an order that depends on the shape, and the order changes the rounding.
    identity: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""  # where the data of the task come from, for the report
    # the SHA-256 of the task's text, to detect that the model was calibrated on the same text
    text_sha256: str | None = None
    needs_memory: bool = True  # whether the whole model must be in memory
    # names or paths of calibration texts that contain the same documents
    shares_text_with: tuple[str, ...] = ()
    dataset: str = ""  # the name of the task's text
    leaving: Leaving | None = None  # None if the documents cannot be left out
    left_out: tuple[int, ...] = ()  # indices of the documents that are left out
    # Whether `run` also takes a working directory, from which an interrupted task resumes.
    continues: bool = False
    # Computes the second argument of `run` from the dense model, such as its hidden states.
    reference: Callable[[PlacedModel], Any] | None = None
    # Whether the models are measured in turns. This is needed for times, because the speed of a
    # machine changes over time.
    side_by_side: bool = False
    # The tokens that a model reads and writes, to estimate times. All zero if this is unknown.
    workload: Workload = field(default_factory=Workload)
    evaluator: str = ""  # the name of the task's evaluator in the config section `eval`

    def is_of_domain(self, calibration: Text) -> bool:
        """Return whether the task and the calibration use the same data set or documents.

        Two splits of a data set count as the same data set.
        """
        read = PASSAGES_OF.get(calibration.name, calibration.name)
        # compare the origins, too, because two files may have the same name
        same_dataset = (self.dataset, self.origin) == (read, calibration.origin)
        shared = {read, calibration.origin} & {*self.shares_text_with}
        return same_dataset or calibration.sha256 == self.text_sha256 or bool(shared)


class Evaluator(ABC):
    """Base class of the choices in the config group `eval`."""

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Read and check the data, and return the tasks.

        max_length: the model's context length in tokens; None if it is unlimited.

        Raises:
            ValueError: an option or the data is invalid.
        """

    def prepare_again(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        before: PreTrainedTokenizerBase,
    ) -> list[Task]:
        """Return the tasks for a model whose tokenizer was trimmed.

        tokenizer: the trimmed tokenizer. before: the tokenizer with which `prepare` has created the
            tasks.
        """
        return self.prepare(tokenizer, max_length)

    def needs_same_tokenizer(self, name: str) -> bool:
        """Return whether a number can be compared only between models with the same tokenizer."""
        return False

    def averages(self, numbers: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the name of each average over tasks, with the names of the averaged numbers."""
        return {}

    def summary(self, measured: Measurement) -> Measurement:
        """Compute the averages over tasks and their standard errors.

        The tasks are independent, so the squares of their standard errors add up.
        """
        numbers = measured.numbers
        means = Numbers()
        better: dict[str, Better] = {}
        for name, parts in self.averages(numbers).items():
            means[name] = sum(numbers[part] for part in parts) / len(parts)
            errors = [numbers.get(f"{part}_stderr", math.nan) for part in parts]
            error = math.hypot(*errors) / len(parts)
            if math.isfinite(error):
                means[f"{name}_stderr"] = error
            if parts[0] in measured.better:
                better[name] = measured.better[parts[0]]
        return Measurement(means, better=better)
