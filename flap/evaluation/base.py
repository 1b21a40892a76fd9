"""The base class of evaluators.

Their tasks are made before the model is loaded, so that bad input fails early.
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
# suffix of the origin of a task whose prompts go through the chat template
TEMPLATED = "; through the chat template"


@dataclass(frozen=True)
class Measurement:
    """Named numbers, such as {"wikitext2/perplexity@2048": 5.68}, with the values of documents."""

    numbers: Numbers = field(default_factory=dict)
    # By the name of each number, its values for each document or window. The number is the mean of
    # its values. For a perplexity, the values belong to its linear approximation
    # (`flap.evaluation.perplexity`).
    documents: Documents = field(default_factory=dict)
    # whether higher or lower values of a number are better, as far as this is known
    better: dict[str, Better] = field(default_factory=dict)
    # numbers of the dense model, if both models were measured in turns
    beside: Numbers = field(default_factory=dict)

    def without(self, names: Collection[str]) -> "Measurement":
        """Return this measurement without some of its numbers."""
        parts = {}
        for part, values in vars(self).items():
            parts[part] = {name: value for name, value in values.items() if name not in names}
        return Measurement(**parts)

    def __or__(self, other: "Measurement") -> "Measurement":
        """Return this measurement with the numbers of another one."""
        parts = {part: values | getattr(other, part) for part, values in vars(self).items()}
        return Measurement(**parts)


@dataclass(frozen=True)
class Leaving:
    """How a task leaves out documents that a run has read."""

    field: str  # the config key and its value: "eval.generation.tasks=sciq_answers"
    documents: Callable[[], Sequence[Document]]  # the texts that identify each document
    without: Callable[[frozenset[int]], "Task"]  # returns the task without documents, by number
    words: Words  # splits a text into the words that are compared


@dataclass(frozen=True)
class Task:
    """A measurement of a model.

    `run` takes the model. If the task has a `reference`, `run` takes the pruned model and the
    result of `reference` for the dense model. If both models are measured side by side, `run` takes
    the dense and the pruned model of transformers.
    """

    name: str
    run: Callable[..., Measurement]
    # Everything that the numbers depend on, except the model. The batch size is part of it, because
    # kernels add in another order if the shape is another, which changes numbers in every
    # floating-point type.
    identity: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""  # where the task's data came from, for the report
    # the hash of the task's text, to detect that the model was calibrated on this text
    text_sha256: str | None = None
    needs_memory: bool = True  # whether the whole model must be in memory
    # calibration texts with the same documents: names, or paths of files
    shares_text_with: tuple[str, ...] = ()
    dataset: str = ""  # the name of the task's text
    leaving: Leaving | None = None  # None: no run can have read its documents
    left_out: tuple[int, ...] = ()  # the numbers of the documents that are left out
    # Whether `run` also takes the working folder in which an interrupted task continues.
    continues: bool = False
    # Computes the second argument of `run` from the dense model, such as its hidden states.
    reference: Callable[[PlacedModel], Any] | None = None
    # Whether both models are measured in turns, because times of different moments cannot be
    # compared.
    side_by_side: bool = False
    # How much a model has to do, for estimates of time. All zero if this is unknown.
    workload: Workload = field(default_factory=Workload)
    evaluator: str = ""  # the name of the task's evaluator in the config's section `eval`

    def is_of_domain(self, calibration: Text) -> bool:
        """Return whether the task's text is from the same data set or the same documents.

        Another part of the same data set counts as the same data set.
        """
        read = PASSAGES_OF.get(calibration.name, calibration.name)
        # the origins are compared, too, because files may share names
        same_dataset = (self.dataset, self.origin) == (read, calibration.origin)
        shared = {read, calibration.origin} & {*self.shares_text_with}
        return same_dataset or calibration.sha256 == self.text_sha256 or bool(shared)


class Evaluator(ABC):
    """The base class of the choices of the `eval` group."""

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """Read and check the data, and return the tasks.

        max_length: the model's context length in tokens, or None if unlimited.

        Raises:
            ValueError: an option or the data is invalid.
        """

    def prepare_again(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        before: PreTrainedTokenizerBase,
    ) -> list[Task]:
        """Return the tasks of a model whose tokenizer was changed.

        tokenizer: the new tokenizer. before: the old one, for which `prepare` made the tasks.
        """
        return self.prepare(tokenizer, max_length)

    def needs_same_tokenizer(self, name: str) -> bool:
        """Return whether a number compares only models that have the same tokenizer."""
        return False

    def averages(self, numbers: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the names of averages over tasks, with the names of the numbers they average."""
        return {}

    def summary(self, measured: Measurement) -> Measurement:
        """Return the averages with their standard errors.

        The tasks are independent, so the squares of their errors add up.
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
