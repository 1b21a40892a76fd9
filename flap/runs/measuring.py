"""The stages that measure the dense model, the pruned model, and the two models side by side.

A task is a measurement, such as the accuracy on boolq. The agenda is the list of tasks to be done.
The results of a task are stored as soon as the task ends. `python -m flap` may be invoked several
times for the same run, for example again after an interruption. A later invocation reads the
results that an earlier invocation has stored, and runs only the tasks that have no stored results.

A plan lists the units (heads, neurons or experts) that stay in the pruned model. The compressed
model is the model after units were removed, before any training.
"""

import logging
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, TypeVar

from flap.evaluation import Measurement, Task
from flap.evaluation.result_files import DENSE
from flap.method.allocation import PruningPlan
from flap.models import ModelSource
from flap.runs import keys
from flap.runs.opened import NoRoomError, Opened, Subject
from flap.runs.outlook import announce
from flap.runs.run import Run
from flap.runs.texts import domain_of_task
from flap.runtime import ranks
from flap.runtime.agenda import Workload
from flap.storage import VERSION, Key, Store, WorkFolder, digest

log = logging.getLogger(__name__)

T = TypeVar("T")
# The keys are the names of tasks that compare the pruned model with the dense model. The values are
# what `Task.reference` returns for the dense model, such as hidden states.
References = dict[str, Any]


def measure_dense(run: Run, dense: Opened, plan: PruningPlan | None) -> References:
    """Measure the dense model, and return data for later comparisons with the pruned model.

    The results of the dense model, such as perplexities and accuracies, are stored in the cache.
    Other runs with the same model and tasks read these results from the cache.

    plan: the plan of the pruned model, if an earlier invocation of the run has made this model;
        else None. With a plan, the return value contains only tasks that have not been measured on
        the pruned model yet.
    """
    run.agenda.plan(_to_measure(run, plan))
    subject = Subject(dense)
    references = References()

    def measure(task: Task) -> None:
        name = _title(task, "dense model")
        if task.reference is None:
            folder = _folder_of(run, task, keys.dense(run))
            measure_alone = partial(subject.measure, task, folder)
            work = partial(_do_next, run, name, measure_alone, subject)
            _remember(run, task, keys.dense(run), work, run.cache.of(DENSE))
            folder.clear()
        elif plan is None or not _is_known(run, task, keys.pruned(run, plan)):
            with run.timed("evaluate"):
                take = partial(task.reference, subject.for_task(task))
                references[task.name] = _do_next(run, name, take, subject)
        run.agenda.drop(name)

    _measure_each(run.tasks_of_one_model, measure, "the whole model in memory")
    return references


def measure_pruned(
    run: Run, pruned: Opened, key: Key, references: References, model: str = "pruned model"
) -> None:
    """Measure the final pruned model, or the compressed model.

    key: the cache key of the measured model.
    references: the return value of `measure_dense`.
    model: the name of the measured model in progress lines.
    """
    subject = Subject(pruned)

    def measure(task: Task) -> None:
        name = _title(task, model)
        folder = _folder_of(run, task, key)
        measure_alone = partial(subject.measure, task, folder)
        if task.reference is not None:
            measure_alone = partial(subject.compare, task, references)
        _remember(run, task, key, partial(_do_next, run, name, measure_alone, subject))
        folder.clear()
        run.agenda.drop(name)

    _measure_each(run.tasks_of_one_model, measure, "the whole model in memory")


class DenseAgain:
    """Opens the dense model again after pruning.

    Create this object before pruning, because pruning changes a model in memory in place.
    """

    def __init__(self, source: ModelSource) -> None:
        self.num_bytes = source.num_bytes
        self.open = source.reopening()


def measure_both(run: Run, dense: DenseAgain, pruned: Opened, plan: PruningPlan) -> None:
    """Measure the dense and the pruned model side by side.

    Both models are loaded when the first task needs them. Only rank 0 runs these tasks, because
    processes that measure times simultaneously would slow each other down.
    """

    @cache
    def have_room() -> bool:
        return pruned().fits_in_memory(beside_bytes=dense.num_bytes)

    @cache
    def both_models() -> list[Any]:
        return [opened.in_memory().model for opened in (dense.open(), pruned())]

    def compare(task: Task) -> Measurement:
        if not have_room():
            raise NoRoomError(task.name)
        return ranks.on_first(lambda: task.run(*both_models()))

    def measure(task: Task) -> None:
        work = partial(_do_next, run, _title(task, "both models"), partial(compare, task))
        _remember(run, task, keys.timed(run, plan), work)

    _measure_each(run.tasks_of_both, measure, "both models in memory at once")


def _measure_each(tasks: Iterable[Task], measure: Callable[[Task], None], needed: str) -> None:
    """Measure tasks, and log a warning with the names of tasks that need more memory than is free.

    needed: a phrase of the warning, which says what must fit into memory.
    """
    left_out = []
    for task in tasks:
        try:
            measure(task)
        except NoRoomError:
            left_out.append(task.name)
    if left_out:
        tasks_left_out = ", ".join(left_out)
        log.warning("not measured, because there is no room for %s: %s", needed, tasks_left_out)


def _title(task: Task, model: str) -> str:
    """Return the name of a task in the progress lines of the log.

    model: the measured model, such as "dense model".
    """
    return f"{task.evaluator}: {task.name}, {model}"


def _do_next(run: Run, title: str, work: Callable[[], T], subject: Subject | None = None) -> T:
    """Run a task of the agenda, and return the result of `work`.

    Before the first task, a warning is logged if all tasks together will take an hour or more.

    title: the name of the task in the agenda. work: the function that runs the task.
    subject: the model that the task measures; None if the task measures two models.
    """
    if subject is not None and subject.whole is not None:
        announce(run.agenda, run.tasks, subject.whole)
    with run.agenda.doing(title):
        return work()


def _remember(
    run: Run,
    task: Task,
    key: Key,
    work: Callable[[], Measurement],
    *shared: Store[Measurement],
) -> None:
    """Run a task by calling `work` and store the results, unless they are stored already.

    key: the cache key of the measured model.
    shared: further stores for the results, such as the cache, in addition to `run.results`.
    """
    stores = [run.results.of(_about(run, task)), *shared]
    run.memory.remember("evaluate", task_key(task, key), work, stores)


def _folder_of(run: Run, task: Task, key: Key) -> WorkFolder:
    """Return the folder from which a task resumes after an interruption.

    key: the cache key of the measured model.
    """
    return run.work / "evaluate" / digest(task_key(task, key))


def task_key(task: Task, key: Key) -> Key:
    """Return the cache key of the results of a task.

    key: the cache key of the measured model.
    """
    return {"version": VERSION, "task": task.name, "data": task.identity, **key}


def _to_measure(run: Run, plan: PruningPlan | None) -> dict[str, Workload]:
    """Return the workloads (numbers of tokens) of the tasks without an entry in `run.results`.

    The keys are the titles of the tasks. A task on the dense model is skipped later if its results
    are in the cache.

    plan: the plan of the pruned model, if an earlier invocation of the run has made this model;
        else None.
    """
    keys_of: dict[str, Key | None] = {"dense model": keys.dense(run)}
    if plan is not None:
        keys_of["pruned model"] = keys.pruned(run, plan)
    else:
        if run.choices.recovery is not None:
            keys_of["compressed model"] = None
        keys_of["pruned model"] = None

    workloads = {}
    for model, key in keys_of.items():
        for task in run.tasks_of_one_model:
            if key is None or not _is_known(run, task, key):
                workloads[_title(task, model)] = task.workload
    for task in run.tasks_of_both:
        if plan is None or not _is_known(run, task, keys.timed(run, plan)):
            workloads[_title(task, "both models")] = task.workload
    return workloads


def _is_known(run: Run, task: Task, key: Key) -> bool:
    """Return whether `run.results` contains the results of a task.

    key: the cache key of the measured model.
    """
    store = run.results.of({})
    return ranks.on_first(partial(store.find, task_key(task, key))) is not None


def _about(run: Run, task: Task) -> dict[str, Any]:
    """Return facts about a task for the report, such as the origin of its data and its options."""
    options = run.described["eval"][task.evaluator]
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
