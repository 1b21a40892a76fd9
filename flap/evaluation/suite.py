"""All measurements of a run: prepared before the model is loaded; results are saved after every task."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.evaluation.base import Comparison, Evaluator, Numbers, Task
from flap.models import PlacedModel
from flap.storage import Cache, Kind, as_json, digest, write_text

log = logging.getLogger(__name__)

DENSE: Kind[Numbers] = as_json("dense")
Key = Mapping[str, Any]
EVALUATION_VERSION = 1  # increased when the same key would give other numbers


@dataclass(frozen=True)
class Results:
    """The file with a run's results, one entry for each task's key; a resumed run does not measure them again."""

    path: Path

    def get(self, key: Key, make: Callable[[], Any]) -> Any:
        """Return the stored numbers of a key; if there are none, store and return those of `make`."""
        entries, name = self._read(), digest(key)
        if name not in entries:
            entries |= {name: {"key": key, "numbers": make()}}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(entries, indent=1) + "\n")
        return entries[name]["numbers"]

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.path.read_text())
            return {name: entry for name, entry in entries.items() if "numbers" in entry}
        except (FileNotFoundError, ValueError, AttributeError, TypeError):  # a damaged file is ignored
            return {}


@dataclass(frozen=True)
class Suite:
    """The chosen evaluators with their tasks and comparisons. results: the file with this run's numbers."""

    parts: Sequence[tuple[Evaluator, list[Task]]]
    comparisons: Sequence[Comparison]
    results: Results

    @property
    def tasks(self) -> list[Task]:
        """Return the tasks of all evaluators."""
        return [task for _, tasks in self.parts for task in tasks]

    def dense(self, model: PlacedModel, key: Key, dense_cache: Cache) -> Numbers:
        """Return all numbers of the dense model, from the cache if an earlier run has measured them.

        key: everything that the numbers depend on, except the tasks.
        """
        return self._all(model, key, lambda task_key, measure: dense_cache.get(DENSE, task_key, measure)[0])

    def pruned(self, model: PlacedModel, key: Key) -> Numbers:
        """Return all numbers of a pruned model. key: everything that they depend on, except the tasks."""
        return self._all(model, key, lambda task_key, measure: measure())

    def side_by_side(
        self, open_dense: Callable[[], PlacedModel], dense_bytes: int, pruned: PlacedModel, key: Key
    ) -> tuple[Numbers, Numbers]:
        """Return the numbers of both models that are measured side by side: (dense, pruned).

        open_dense: opens the dense model of `dense_bytes`; called only if there are comparisons and room.
        """
        dense_numbers: Numbers = {}
        pruned_numbers: Numbers = {}
        if self.comparisons and not pruned.fits_in_memory(beside_bytes=dense_bytes):
            _warn_left_out([comparison.name for comparison in self.comparisons], "both models in memory at once")
            return dense_numbers, pruned_numbers
        load_dense, load_pruned = cache(lambda: open_dense().in_memory().model), cache(lambda: pruned.in_memory().model)
        for comparison in self.comparisons:
            compare = partial(_side_by_side, comparison, load_dense, load_pruned)
            of_dense, of_pruned = self.results.get(_task_key(comparison, key), compare)
            dense_numbers, pruned_numbers = dense_numbers | of_dense, pruned_numbers | of_pruned
        return dense_numbers, pruned_numbers

    def _all(self, model: PlacedModel, key: Key, keep: Callable[[Key, Callable[[], Numbers]], Numbers]) -> Numbers:
        """Return the numbers of all tasks. If the model fits into memory, it is loaded when a task first needs it."""
        fits, numbers = model.fits_in_memory(), Numbers()
        load = cache(model.in_memory if fits else lambda: model)
        if left_out := [task.name for task in self.tasks if not fits and task.needs_memory]:
            _warn_left_out(left_out, "the whole model in memory")
        for evaluator, tasks in self.parts:
            part_numbers: Numbers = {}
            for task in tasks:
                if fits or not task.needs_memory:
                    task_key = _task_key(task, key)
                    part_numbers |= self.results.get(task_key, partial(keep, task_key, partial(_measure, task, load)))
            numbers |= part_numbers | evaluator.summary(part_numbers)
        return numbers


def _measure(task: Task, load: Callable[[], PlacedModel]) -> Numbers:
    return task.run(load())


def _side_by_side(
    comparison: Comparison, load_dense: Callable[[], PreTrainedModel], load_pruned: Callable[[], PreTrainedModel]
) -> tuple[Numbers, Numbers]:
    return comparison.run(load_dense(), load_pruned())


def _warn_left_out(names: list[str], needed: str) -> None:
    log.warning("not measured, because there is no room for %s: %s", needed, ", ".join(names))


def _task_key(task: Task | Comparison, key: Key) -> Key:
    """Return everything that a task's numbers depend on. key: the model's part of it."""
    return {"version": EVALUATION_VERSION, "task": task.name, **task.identity, **key}


def prepare_suite(
    evaluators: Sequence[Evaluator], tokenizer: PreTrainedTokenizerBase, max_length: int | None, path: Path
) -> Suite:
    """Read and check the data of every task, and return the suite. path: the file with the run's results.

    Raises:
        ValueError: an option or the data is invalid, or two tasks have the same name.
    """
    suite = Suite(
        [(evaluator, evaluator.prepare(tokenizer, max_length)) for evaluator in evaluators],
        [comparison for evaluator in evaluators for comparison in evaluator.comparisons(max_length)],
        Results(path),
    )
    names = Counter(task.name for task in suite.tasks)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"eval: {', '.join(repeated)} is named twice; expected tasks and texts of different names")
    return suite
