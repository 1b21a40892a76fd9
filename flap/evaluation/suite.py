"""All measurements of a run, prepared before the model is loaded."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.data.overlap import ReadText
from flap.evaluation.base import Evaluator, SideBySide, Task
from flap.evaluation.left_out import without_read

log = logging.getLogger(__name__)


class SuitePart(NamedTuple):
    """What one evaluator measures."""

    name: str  # of the evaluator in the config's section `eval`
    evaluator: Evaluator
    tasks: list[Task]
    comparisons: list[SideBySide]


@dataclass(frozen=True)
class Suite:
    """The chosen evaluators, and what they measure."""

    parts: Sequence[SuitePart]
    # what tasks take of the dense model to compare the pruned model with, by the task's name
    references: dict[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> list[Task]:
        """The tasks of all evaluators."""
        return [task for part in self.parts for task in part.tasks]

    @property
    def comparisons(self) -> list[SideBySide]:
        """The measurements of all evaluators that need both models at once."""
        return [comparison for part in self.parts for comparison in part.comparisons]

    def without_read(self, read: Sequence[ReadText]) -> "Suite":
        """Return the suite whose tasks leave out the documents that are in texts which were read.

        Raises:
            ValueError: a task has no document left, or too few.
        """
        parts = [part._replace(tasks=without_read(part.tasks, read)) for part in self.parts]
        return replace(self, parts=parts)

    def evaluator_of(self, task: Task | SideBySide) -> str:
        """Return the name of the evaluator that a task belongs to."""
        for part in self.parts:
            if any(task is one for one in (*part.tasks, *part.comparisons)):
                return part.name
        raise KeyError(task.name)


def prepare_suite(
    evaluators: Mapping[str, Evaluator],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    before: PreTrainedTokenizerBase | None = None,
) -> Suite:
    """Read and check the data of every task, and return the suite.

    evaluators: by their names in the config. before: the tokenizer of the dense model, if the vocabulary was trimmed
    since.

    Raises:
        ValueError: an option or the data is invalid, or two tasks have the same name.
    """
    parts = []
    for name, evaluator in evaluators.items():
        if before is None:
            tasks = evaluator.prepare(tokenizer, max_length)
        else:
            tasks = evaluator.prepare_again(tokenizer, max_length, before)
        parts.append(SuitePart(name, evaluator, tasks, evaluator.comparisons(max_length)))

    suite = Suite(parts)
    names = Counter(task.name for task in suite.tasks)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise ValueError(
            f"eval: {', '.join(repeated)} is named twice; expected tasks and texts of different names"
        )
    return suite
