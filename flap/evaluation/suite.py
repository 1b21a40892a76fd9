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

from flap.cache import Cache, Kind, as_json, digest
from flap.evaluation.base import Comparison, Evaluator, Numbers, Task
from flap.files import write_text
from flap.models import AnyModel, StreamedModel, in_memory, room_for

log = logging.getLogger(__name__)

DENSE: Kind[Numbers] = as_json("dense")
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

    def dense(self, model: AnyModel, key: Key, kept: Cache) -> Numbers:
        """All numbers of a dense model, from the cache where an earlier run has measured them."""
        return self._all(model, key, lambda of, measure: kept.get(DENSE, of, measure)[0])

    def pruned(self, model: AnyModel, key: Key) -> Numbers:
        """All numbers of a pruned model; `key` says which."""
        return self._all(model, key, lambda of, measure: measure())

    def side_by_side(self, open_dense: Callable[[], AnyModel], pruned: AnyModel, key: Key) -> tuple[Numbers, Numbers]:
        """The numbers of both models where one is measured beside the other; the dense one is opened where needed."""
        of_dense: Numbers = {}
        of_pruned: Numbers = {}
        if isinstance(pruned, StreamedModel) and self.comparisons and not room_for(open_dense(), pruned):
            _leave_out([one.name for one in self.comparisons], "both models in memory at once")
            return of_dense, of_pruned
        dense, beside = cache(lambda: in_memory(open_dense())), cache(partial(in_memory, pruned))
        for one in self.comparisons:
            first, second = self.results.get(_identity(one, key), partial(_side_by_side, one, dense, beside))
            of_dense, of_pruned = of_dense | first, of_pruned | second
        return of_dense, of_pruned

    def _all(self, model: AnyModel, key: Key, keep: Callable[[Key, Callable[[], Numbers]], Numbers]) -> Numbers:
        """A streamed model is loaded as a whole where there is room, when a task first needs it, and only for this."""
        room, numbers = room_for(model), Numbers()
        subject = cache(partial(in_memory, model) if room else lambda: model)
        if left_out := [task.name for task in self.tasks if not room and not task.streams]:
            _leave_out(left_out, "the whole model in memory")
        for evaluator, tasks in self.parts:
            of_part: Numbers = {}
            for task in tasks:
                if room or task.streams:
                    of = _identity(task, key)
                    of_part |= self.results.get(of, partial(keep, of, partial(_measure, task, subject)))
            numbers |= of_part | evaluator.summary(of_part)
        return numbers


def _measure(task: Task, subject: Callable[[], AnyModel]) -> Numbers:
    return task.run(subject())


def _side_by_side(
    one: Comparison, dense: Callable[[], PreTrainedModel], pruned: Callable[[], PreTrainedModel]
) -> tuple[Numbers, Numbers]:
    return one.run(dense(), pruned())


def _leave_out(names: list[str], needed: str) -> None:
    log.warning("not measured, because there is no room for %s: %s", needed, ", ".join(names))


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
