"""The base class of evaluators.

An evaluator is a choice of the config group `eval`, and creates tasks. Each task measures a model,
for example on one text, or on the documents (questions) of one benchmark. The tasks are created
before the model is loaded, so that invalid options and data are reported early.
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
# appended to the field `origin` of a task whose prompts go through the tokenizer's chat template
TEMPLATED = "; through the chat template"
TEMPLATES = ("auto", "true", "false")  # the values of the option `chat_template`


@dataclass(frozen=True)
class Measurement:
    """The numbers that a task measured, such as a perplexity or an accuracy.

    If a number is a mean over documents or over windows of a text, the value of each document or
    window is stored, too.
    """

    numbers: Numbers = field(default_factory=dict)  # such as {"wikitext2/perplexity@2048": 5.68}
    # For each number that is a mean over documents or windows: the value of each document or
    # window. A perplexity is not the mean of the perplexities of its windows. So each window gets
    # an approximate value instead, and the mean of these values is the perplexity
    # (`flap.evaluation.perplexity.linearised`).
    documents: Documents = field(default_factory=dict)
    # for each number: whether higher or lower values are better. A number is left out if this is
    # unknown.
    better: dict[str, Better] = field(default_factory=dict)
    # the measured numbers of the dense model, if the task measures both models
    # (`Task.side_by_side`). The measured numbers of the pruned model are then in `numbers`.
    beside: Numbers = field(default_factory=dict)

    def without(self, names: Collection[str]) -> "Measurement":
        """Return a copy of this measurement without the numbers that have one of these names."""
        parts = {}
        for part, values in vars(self).items():
            parts[part] = {name: value for name, value in values.items() if name not in names}
        return Measurement(**parts)

    def __or__(self, other: "Measurement") -> "Measurement":
        """Return a measurement with the numbers of both measurements."""
        parts = {part: values | getattr(other, part) for part, values in vars(self).items()}
        return Measurement(**parts)


@dataclass(frozen=True)
class Leaving:
    """How a task leaves out documents that the run has used for calibration or training."""

    # config key and value that name the task, as in "eval.generation.tasks=sciq_answers"
    field: str
    # a function that returns, for each document of the task, the sequences of words by which the
    # document is recognised in other texts
    documents: Callable[[], Sequence[Document]]
    # a function that takes indices of documents, and returns the task without these documents
    without: Callable[[frozenset[int]], "Task"]
    words: Words  # a function that splits a text into the words by which documents are recognised


@dataclass(frozen=True)
class Task:
    """A measurement that is ready to run on a model.

    Usually, `run` takes one model, which is the dense or the pruned model. If the task has a
    `reference`, `run` takes two arguments: the pruned model, and the result of `reference` for the
    dense model. If `side_by_side` is true, `run` takes both models, as objects of the library
    transformers.
    """

    name: str
    run: Callable[..., Measurement]
    # Everything that the measured numbers depend on, except the model. The batch size is included,
    # because GPU kernels add numbers in an order that depends on the shape of the batch, and a
    # different order gives different rounding errors.
    identity: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""  # where the documents or the text of the task come from, for the report
    # the SHA-256 of the task's text, to detect that this text was used for calibration, too
    text_sha256: str | None = None
    # whether the task needs the whole model in memory, and not only one layer at a time
    needs_memory: bool = True
    # names or paths of texts that contain documents of this task
    shares_text_with: tuple[str, ...] = ()
    # the name of the text that the model predicts, for example to measure a perplexity; empty if
    # the task needs no text
    dataset: str = ""
    # how to leave out documents that the run has also used for calibration or training; None if
    # the task cannot leave out documents
    leaving: Leaving | None = None
    left_out: tuple[int, ...] = ()  # indices of the documents that are left out
    # Whether `run` also takes a working directory, in which it stores partial results, so that an
    # interrupted task can continue from these results.
    continues: bool = False
    # A function that takes the dense model, and returns the second argument of `run`, such as
    # hidden states.
    reference: Callable[[PlacedModel], Any] | None = None
    # Whether `run` measures the dense and the pruned model in turns. Tasks that measure times need
    # this, because the speed of a machine changes over time.
    side_by_side: bool = False
    # The numbers of tokens that a model reads and generates in this task, to estimate how long the
    # task takes. Unknown numbers are 0.
    workload: Workload = field(default_factory=Workload)
    evaluator: str = ""  # the name of the task's evaluator in the config section `eval`

    def is_of_domain(self, calibration: Text) -> bool:
        """Return whether a calibration text comes from this task's data set or documents.

        Different splits of a data set, such as train and test, count as the same data set.
        """
        read = PASSAGES_OF.get(calibration.name, calibration.name)
        # compare the origins, too, because two different files may have the same name
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
        """Return the tasks for a pruned model whose tokenizer has lost tokens (`vocabulary=trim`).

        tokenizer: the tokenizer of the pruned model.
        before: the tokenizer with which `prepare` created the tasks of the dense model.
        """
        return self.prepare(tokenizer, max_length)

    def needs_same_tokenizer(self, name: str) -> bool:
        """Return whether a number may be compared only between models with the same tokenizer.

        name: the name of the number, such as "wikitext2/perplexity@2048".
        """
        return False

    def averages(self, numbers: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return a dict from each average over tasks to the names of the averaged numbers.

        numbers: the measured numbers of all tasks, by name.
        """
        return {}

    def summary(self, measured: Measurement) -> Measurement:
        """Return the averages over tasks, and the standard errors of these averages.

        Different tasks have different documents. The statistical errors of the tasks' numbers are
        therefore independent, and the squares of the standard errors add up.
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
