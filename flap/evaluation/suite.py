"""All measurements of a run: prepared before the model is loaded; results are saved after every task."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from flap.evaluation.base import Evaluator, Measurement, Numbers, SideBySide, Task
from flap.evaluation.result_files import DENSE, Key, Results
from flap.models import PlacedModel
from flap.storage import Cache
from flap.storage.ranks import on_first

log = logging.getLogger(__name__)

EVALUATION_VERSION = 9  # increased when the same key would give other numbers, or more of them
Load = Callable[[], PlacedModel]


@dataclass(frozen=True)
class Suite:
    """The chosen evaluators, and what they measure."""

    parts: Sequence[tuple[Evaluator, list[Task]]]
    comparisons: Sequence[SideBySide]
    results: Results | None  # the files with the numbers; None: the run has no folder
    references: dict[str, Any] = field(
        default_factory=dict
    )  # what tasks take of the dense model, by the task's name

    @property
    def tasks(self) -> list[Task]:
        """Return the tasks of all evaluators."""
        return [task for _, tasks in self.parts for task in tasks]

    def dense(self, model: PlacedModel, key: Key, dense_cache: Cache) -> Measurement:
        """Return all numbers of the dense model, from the cache if an earlier run has measured them.

        The references of tasks are made, too. key: everything that the numbers depend on, except the tasks.
        """

        def measure(task: Task, task_key: Key, load: Load) -> Measurement:
            if task.reference is None:
                return self._measured(
                    task_key, lambda: dense_cache.get(DENSE, task_key, lambda: task.run(load()))[0]
                )
            self.references[task.name] = task.reference(load())
            return Measurement()

        return self._all(model, key, measure)

    def pruned(self, model: PlacedModel, key: Key) -> Measurement:
        """Return all numbers of a pruned model. key: everything that they depend on, except the tasks."""

        def measure(task: Task, task_key: Key, load: Load) -> Measurement:
            reference = () if task.reference is None else (self.references[task.name],)
            return self._measured(task_key, lambda: task.run(load(), *reference))

        return self._all(model, key, measure)

    def averages(self, numbers: Numbers) -> dict[str, list[str]]:
        """Return the names of averages over tasks, each with the names of the numbers that it is the mean of."""
        return {
            name: parts for one, _ in self.parts for name, parts in one.averages(numbers).items()
        }

    def side_by_side(
        self, open_dense: Load, dense_bytes: int, pruned: PlacedModel, key: Key
    ) -> tuple[Numbers, Numbers]:
        """Return the numbers of both models that are measured side by side: (dense, pruned).

        open_dense: opens the dense model of `dense_bytes`; called only if there are comparisons and room.
        """
        dense_numbers = Numbers()
        pruned_numbers = Numbers()
        if self.comparisons and not pruned.fits_in_memory(beside_bytes=dense_bytes):
            _warn_left_out(
                [comparison.name for comparison in self.comparisons],
                "both models in memory at once",
            )
            return dense_numbers, pruned_numbers
        models = cache(lambda: (open_dense().in_memory().model, pruned.in_memory().model))
        for comparison in self.comparisons:

            def compare(one: SideBySide = comparison) -> tuple[Numbers, Numbers]:
                return one.run(*models())

            stored = (
                partial(self.results.get, _task_key(comparison, key), compare)
                if self.results
                else compare
            )
            numbers = on_first(stored)  # alone: models that run at once slow each other
            dense_numbers = dense_numbers | numbers[0]
            pruned_numbers = pruned_numbers | numbers[1]
        return dense_numbers, pruned_numbers

    def _measured(self, key: Key, make: Callable[[], Measurement]) -> Measurement:
        return self.results.measured(key, make) if self.results else make()

    def _all(
        self, model: PlacedModel, key: Key, measure: Callable[[Task, Key, Load], Measurement]
    ) -> Measurement:
        """Return the numbers of all tasks. If the model fits into memory, it is loaded when a task first needs it."""
        fits = model.fits_in_memory()
        measured = Measurement()
        load = cache(model.in_memory if fits else lambda: model)
        if left_out := [task.name for task in self.tasks if not fits and task.needs_memory]:
            _warn_left_out(left_out, "the whole model in memory")
        for evaluator, tasks in self.parts:
            part = Measurement()
            for task in tasks:
                if fits or not task.needs_memory:
                    part |= measure(task, _task_key(task, key), load)
            measured |= part | evaluator.summary(part)
        return measured


def _warn_left_out(names: list[str], needed: str) -> None:
    log.warning("not measured, because there is no room for %s: %s", needed, ", ".join(names))


def _task_key(task: Task | SideBySide, key: Key) -> Key:
    """Return everything that a task's numbers depend on. key: the model's part of it."""
    return {"version": EVALUATION_VERSION, "task": task.name, "data": task.identity, **key}


def prepare_suite(
    evaluators: Sequence[Evaluator],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    path: Path | None,
    before: PreTrainedTokenizerBase | None = None,
) -> Suite:
    """Read and check the data of every task, and return the suite.

    path: the file with the run's results; None: none. before: the model's tokenizer until now, if it was changed.

    Raises:
        ValueError: an option or the data is invalid, or two tasks have the same name.
    """

    def prepared(one: Evaluator) -> list[Task]:
        return (
            one.prepare_again(tokenizer, max_length, before)
            if before
            else one.prepare(tokenizer, max_length)
        )

    suite = Suite(
        [(evaluator, prepared(evaluator)) for evaluator in evaluators],
        [
            comparison
            for evaluator in evaluators
            for comparison in evaluator.comparisons(max_length)
        ],
        Results(path) if path else None,
    )
    names = Counter(task.name for task in suite.tasks)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ValueError(
            f"eval: {', '.join(repeated)} is named twice; expected tasks and texts of different names"
        )
    return suite
