"""All measurements of a run: prepared before the model is loaded, and kept after every task."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.cache import Cache, Kind, digest
from flap.evaluation.base import Comparison, Evaluator, Numbers, Task
from flap.files import write_text
from flap.models import AnyModel

log = logging.getLogger(__name__)

DENSE: Kind[Numbers] = Kind(
    "dense", lambda numbers, path: write_text(path, json.dumps(numbers)), lambda path: json.loads(path.read_text())
)
Key = Mapping[str, Any]
EVALUATION_VERSION = 1  # raised when the same key would give other numbers


@dataclass(frozen=True)
class Results:
    """Numbers in one file, each task's under a digest of all that they depend on; a run started again skips those."""

    path: Path

    def get(self, key: Key, make: Callable[[], Any]) -> Any:
        """What is kept under the key, else what `make` returns, which is then kept."""
        known, name = self._read(), digest(key)
        if name not in known:
            known |= {name: {"key": key, "numbers": make()}}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(known, indent=1) + "\n")
        return known[name]["numbers"]

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_text())
            return {name: entry for name, entry in known.items() if "numbers" in entry}
        except (FileNotFoundError, ValueError, AttributeError, TypeError):  # a file that is damaged counts for nothing
            return {}


@dataclass(frozen=True)
class Suite:
    """The chosen evaluators with their tasks; `results`: where the numbers of this run are kept."""

    parts: Sequence[tuple[Evaluator, list[Task]]]
    comparisons: Sequence[Comparison]
    results: Results

    @property
    def tasks(self) -> list[Task]:
        return [task for _, tasks in self.parts for task in tasks]

    def streaming(self) -> "Suite":
        """What can be measured of a model that is not in memory as a whole; says what is left out."""
        parts = [(one, [task for task in tasks if task.streams]) for one, tasks in self.parts]
        left_out = [task.name for task in self.tasks if not task.streams] + [one.name for one in self.comparisons]
        if left_out:
            log.warning("not measured, because it needs the whole model in memory: %s", ", ".join(left_out))
        return Suite([part for part in parts if part[1]], (), self.results)

    def dense(self, model: AnyModel, key: Key, kept: Cache) -> Numbers:
        """All numbers of a dense model, from the cache where an earlier run has measured them."""
        return self._all(lambda task, of: kept.get(DENSE, of, lambda: task.run(model))[0], key)

    def pruned(self, model: AnyModel, key: Key) -> Numbers:
        """All numbers of a pruned model; `key` says which."""
        return self._all(lambda task, of: task.run(model), key)

    def side_by_side(
        self, load_dense: Callable[[], PreTrainedModel], pruned: PreTrainedModel, key: Key
    ) -> tuple[Numbers, Numbers]:
        """The numbers of both models where one is measured beside the other; the dense one is loaded where needed."""
        load = cache(load_dense)
        of_dense: Numbers = {}
        of_pruned: Numbers = {}
        for one in self.comparisons:
            known = _identity(one, key)
            first, second = self.results.get(known, partial(_side_by_side, one, load, pruned))
            of_dense, of_pruned = of_dense | first, of_pruned | second
        return of_dense, of_pruned

    def _all(self, measure: Callable[[Task, Key], Numbers], key: Key) -> Numbers:
        numbers: Numbers = {}
        for evaluator, tasks in self.parts:
            of_part: Numbers = {}
            for task in tasks:
                of = _identity(task, key)
                of_part |= self.results.get(of, partial(measure, task, of))
            numbers |= of_part | evaluator.summary(of_part)
        return numbers


def _side_by_side(
    one: Comparison, load_dense: Callable[[], PreTrainedModel], pruned: PreTrainedModel
) -> tuple[Numbers, Numbers]:
    return one.run(load_dense(), pruned)


def _identity(one: Task | Comparison, key: Key) -> Key:
    return {"version": EVALUATION_VERSION, "task": one.name, **one.identity, **key}


def prepare(
    evaluators: Sequence[Evaluator], tokenizer: PreTrainedTokenizerBase, max_length: int | None, path: Path
) -> Suite:
    """Read and check the data of every task.

    Raises:
        ValueError: as the evaluators' options say, or two tasks would give numbers of the same name.
    """
    suite = Suite(
        [(one, one.prepare(tokenizer, max_length)) for one in evaluators],
        [comparison for one in evaluators for comparison in one.comparisons(max_length)],
        Results(path),
    )
    names = Counter(task.name for task in suite.tasks)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"eval: {', '.join(repeated)} is named twice; expected tasks and texts of different names")
    return suite
