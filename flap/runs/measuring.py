"""The stages that measure: the dense model, the pruned model, and both side by side."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

from flap.evaluation import Measurement
from flap.evaluation.base import SideBySide, Task
from flap.evaluation.result_files import DENSE, Sides
from flap.method.allocation import PruningPlan
from flap.models import PlacedModel
from flap.results.provenance import described
from flap.runs import keys
from flap.runs.memory import Stage
from flap.runs.opened import Opened
from flap.runs.run import Run
from flap.runs.texts import domain_of_task
from flap.runtime import ranks
from flap.storage import VERSION, Store, digest

log = logging.getLogger(__name__)


class NoRoomError(RuntimeError):
    """There is no room in memory for what a task needs, which is therefore not measured."""


class Subject:
    """A model that tasks measure. If it fits into memory, it is loaded as a whole when a task first needs it."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    @cached_property
    def fits(self) -> bool:
        """Whether the whole model fits into memory."""
        return self._opened().fits_in_memory()

    @cached_property
    def _loaded(self) -> PlacedModel:
        model = self._opened()
        return model.in_memory() if self.fits else model

    def for_task(self, task: Task) -> PlacedModel:
        """Return the model as a task takes it.

        Raises:
            NoRoomError: the task needs the whole model in memory, and there is no room.
        """
        if task.needs_memory and not self.fits:
            raise NoRoomError(task.name)
        return self._loaded


def measure_dense(run: Run, dense: Opened, known: PruningPlan | None) -> None:
    """Measure the dense model, and take what tasks compare with: its predictions.

    Runs that measure the same share the numbers. known: the plan, if an earlier start of the run has pruned the model;
    then predictions are taken only for numbers that are still missing.
    """
    subject = Subject(dense)
    left_out = []
    for task in run.suite.tasks:
        try:
            if task.reference is None:
                run.remember(MEASURE_DENSE, subject, task)
            elif known is None or not _is_measured(run, task, keys.pruned(run, known)):
                run.suite.references[task.name] = _reference(run, subject, task)
        except NoRoomError:
            left_out.append(task.name)
    _warn_left_out(left_out, "the whole model in memory")


def _reference(run: Run, subject: Subject, task: Task) -> Any:
    assert task.reference is not None
    with run.timed("evaluate"):
        return task.reference(subject.for_task(task))


def measure_pruned(run: Run, pruned: Opened, key: keys.Key) -> None:
    """Measure the pruned model, or the compressed one before it is trained. key: of that model."""
    subject = Subject(pruned)
    left_out = []
    for task in run.suite.tasks:
        try:
            run.remember(MEASURE_PRUNED, subject, task, key)
        except NoRoomError:
            left_out.append(task.name)
    _warn_left_out(left_out, "the whole model in memory")


def measure_both(
    run: Run,
    reopen_dense: Callable[[], PlacedModel],
    dense_bytes: int,
    pruned: Opened,
    plan: PruningPlan,
) -> None:
    """Measure both models in turns. dense_bytes: of the weights of the model that `reopen_dense` opens."""
    sides = BothInMemory(reopen_dense, dense_bytes, pruned)
    left_out = []
    for comparison in run.suite.comparisons:
        try:
            run.remember(MEASURE_BOTH, sides, comparison, plan)
        except NoRoomError:
            left_out.append(comparison.name)
    _warn_left_out(left_out, "both models in memory at once")


class BothInMemory:
    """The dense and the pruned model in memory at once, loaded when a comparison first needs them."""

    def __init__(
        self, reopen_dense: Callable[[], PlacedModel], dense_bytes: int, pruned: Opened
    ) -> None:
        self._reopen_dense = reopen_dense
        self._dense_bytes = dense_bytes
        self._pruned = pruned

    @cached_property
    def fit(self) -> bool:
        """Whether there is room for both."""
        return self._pruned().fits_in_memory(beside_bytes=self._dense_bytes)

    @cached_property
    def models(self) -> tuple[Any, Any]:
        """The dense and the pruned model of transformers."""
        return self._reopen_dense().in_memory().model, self._pruned().in_memory().model


def task_key(task: Task | SideBySide, key: keys.Key) -> keys.Key:
    """Return everything that the numbers of a task depend on. key: of the model."""
    return {"version": VERSION, "task": task.name, "data": task.identity, **key}


def about_task(run: Run, task: Task) -> dict[str, Any]:
    """Return what the report says of a task besides its numbers. It is stored with the numbers."""
    about = about_evaluator(run, task)
    about["source"] = task.origin
    data: list[Any] = [task.origin, task.text_sha256]
    if task.left_out:
        data.append(task.left_out)
        about["left_out"] = len(task.left_out)
    about["input"] = digest(data)
    about["domain"] = domain_of_task(run.texts, task)
    if "bos" in task.identity:
        about["bos"] = bool(task.identity["bos"])
    return about


def about_evaluator(run: Run, task: Task | SideBySide) -> dict[str, Any]:
    """Return the evaluator that a task belongs to, with its options."""
    name = run.suite.evaluator_of(task)
    options = described(run.config)["eval"][name]
    return {"evaluator": name, "options": options}


def _is_measured(run: Run, task: Task, key: keys.Key) -> bool:
    """Return whether a task of the pruned model has its numbers."""
    store = run.results.of({})
    return ranks.on_first(lambda: store.find(task_key(task, key)) is not None)


def _measure_dense(run: Run, subject: Subject, task: Task) -> Measurement:
    return task.run(subject.for_task(task))


def _dense_key(run: Run, subject: Subject, task: Task) -> keys.Key:
    return task_key(task, keys.dense(run))


def _dense_stores(run: Run, subject: Subject, task: Task) -> list[Store[Measurement]]:
    return [run.results.of(about_task(run, task)), run.cache.of(DENSE)]


def _measure_pruned(run: Run, subject: Subject, task: Task, key: keys.Key) -> Measurement:
    model = subject.for_task(task)
    if task.reference is None:
        return task.run(model)
    return task.run(model, run.suite.references[task.name])


def _pruned_key(run: Run, subject: Subject, task: Task, key: keys.Key) -> keys.Key:
    return task_key(task, key)


def _pruned_stores(
    run: Run, subject: Subject, task: Task, key: keys.Key
) -> list[Store[Measurement]]:
    return [run.results.of(about_task(run, task))]


def _measure_both(
    run: Run, sides: BothInMemory, comparison: SideBySide, plan: PruningPlan
) -> Sides:
    if not sides.fit:
        raise NoRoomError(comparison.name)
    # by one process alone, as models that run at once would slow each other
    return ranks.on_first(lambda: comparison.run(*sides.models))


def _both_key(run: Run, sides: BothInMemory, comparison: SideBySide, plan: PruningPlan) -> keys.Key:
    return task_key(comparison, keys.timed(run, plan))


def _both_stores(
    run: Run, sides: BothInMemory, comparison: SideBySide, plan: PruningPlan
) -> list[Store[Sides]]:
    return [run.results.both(about_evaluator(run, comparison))]


MEASURE_DENSE = Stage("evaluate", _measure_dense, _dense_key, _dense_stores)
MEASURE_PRUNED = Stage("evaluate", _measure_pruned, _pruned_key, _pruned_stores)
MEASURE_BOTH = Stage("evaluate", _measure_both, _both_key, _both_stores)


def _warn_left_out(names: list[str], needed: str) -> None:
    if names:
        log.warning("not measured, because there is no room for %s: %s", needed, ", ".join(names))
