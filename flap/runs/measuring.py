"""The stages that measure: the dense model, the pruned model, and both side by side."""

import logging
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any

from flap.evaluation import Measurement, Task
from flap.evaluation.result_files import DENSE
from flap.method.allocation import PruningPlan
from flap.models import ModelSource
from flap.results.provenance import described
from flap.runs import keys
from flap.runs.opened import NoRoomError, Opened, Subject
from flap.runs.run import Run
from flap.runs.texts import domain_of_task
from flap.runtime import ranks
from flap.storage import VERSION, Key, Store, digest

log = logging.getLogger(__name__)

References = dict[str, Any]  # what tasks take of the dense model, by the task's name


def measure_dense(run: Run, dense: Opened, plan: PruningPlan | None) -> References:
    """Measure the dense model, and return what tasks take of it to compare the pruned model with.

    Runs that measure the same share the numbers. plan: the plan, if an earlier start of the run has
    made the pruned model; then nothing is taken for tasks whose numbers are known.
    """
    subject = Subject(dense)
    references = References()

    def measure(task: Task) -> None:
        if task.reference is None:
            work = partial(subject.measure, task)
            _remember(run, task, keys.dense(run), work, run.cache.of(DENSE))
        elif plan is None or not _is_measured(run, task, keys.pruned(run, plan)):
            with run.timed("evaluate"):
                references[task.name] = task.reference(subject.for_task(task))

    _measure_each(run.tasks_of_one_model, measure, "the whole model in memory")
    return references


def measure_pruned(run: Run, pruned: Opened, key: Key, references: References) -> None:
    """Measure the pruned model, or the compressed one before it is trained. key: of that model."""
    subject = Subject(pruned)

    def measure(task: Task) -> None:
        work = partial(subject.measure, task)
        if task.reference is not None:
            work = partial(subject.compare, task, references)
        _remember(run, task, key, work)

    _measure_each(run.tasks_of_one_model, measure, "the whole model in memory")


class DenseAgain:
    """The dense model, which can be opened again after it was pruned. Made before that."""

    def __init__(self, source: ModelSource) -> None:
        self.num_bytes = source.num_bytes
        self.open = source.reopening()


class BothInMemory:
    """The dense and the pruned model in memory at once, loaded when a task first needs them."""

    def __init__(self, dense: DenseAgain, pruned: Opened) -> None:
        self._dense = dense
        self._pruned = pruned

    @cached_property
    def _fit(self) -> bool:
        return self._pruned().fits_in_memory(beside_bytes=self._dense.num_bytes)

    @cached_property
    def _models(self) -> list[Any]:
        """The dense and the pruned model of transformers."""
        return [opened.in_memory().model for opened in (self._dense.open(), self._pruned())]

    def measure(self, task: Task) -> Measurement:
        """Run a task on both models.

        One process runs it alone, because models that run at once would slow each other.

        Raises:
            NoRoomError: there is no room for both.
        """
        if not self._fit:
            raise NoRoomError(task.name)
        return ranks.on_first(partial(self._run, task))

    def _run(self, task: Task) -> Measurement:
        return task.run(*self._models)


def measure_both(run: Run, dense: DenseAgain, pruned: Opened, plan: PruningPlan) -> None:
    """Measure both models side by side."""
    both = BothInMemory(dense, pruned)

    def measure(task: Task) -> None:
        _remember(run, task, keys.timed(run, plan), partial(both.measure, task))

    _measure_each(run.tasks_of_both, measure, "both models in memory at once")


def _measure_each(tasks: Iterable[Task], measure: Callable[[Task], None], needed: str) -> None:
    """Measure tasks. Warn of those for which there is no room in memory. needed: what they need."""
    left_out = []
    for task in tasks:
        try:
            measure(task)
        except NoRoomError:
            left_out.append(task.name)
    if left_out:
        tasks_left_out = ", ".join(left_out)
        log.warning("not measured, because there is no room for %s: %s", needed, tasks_left_out)


def _remember(
    run: Run,
    task: Task,
    key: Key,
    work: Callable[[], Measurement],
    *shared: Store[Measurement],
) -> None:
    """Measure a task, unless its numbers are known. key: of the model."""
    stores = [run.results.of(_about(run, task)), *shared]
    run.memory.remember("evaluate", task_key(task, key), work, stores)


def task_key(task: Task, key: Key) -> Key:
    """Return everything that the numbers of a task depend on. key: of the model."""
    return {"version": VERSION, "task": task.name, "data": task.identity, **key}


def _is_measured(run: Run, task: Task, key: Key) -> bool:
    """Return whether the numbers of a task are in the run's results. key: of the model."""
    store = run.results.of({})
    return ranks.on_first(partial(store.find, task_key(task, key))) is not None


def _about(run: Run, task: Task) -> dict[str, Any]:
    """Return what the report says of a task besides its numbers. It is stored with the numbers."""
    options = described(run.config)["eval"][task.evaluator]
    about = {"evaluator": task.evaluator, "options": options}
    if task.side_by_side:
        return about

    data: list[Any] = [task.origin, task.text_sha256]
    if task.left_out:
        data.append(task.left_out)
        about["left_out"] = len(task.left_out)
    about["source"] = task.origin
    about["input"] = digest(data)
    if run.texts:
        about["domain"] = domain_of_task(run.texts, task)
    if "bos" in task.identity:
        about["bos"] = bool(task.identity["bos"])
    return about
