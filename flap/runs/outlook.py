"""The tasks that a run has not yet measured, and an estimate of their time."""

import logging
from collections.abc import Callable
from typing import TypeVar

from flap.evaluation import Task
from flap.evaluation.request_cost import measured_speed
from flap.models import PlacedModel
from flap.runs.opened import Subject
from flap.runs.run import Run
from flap.runtime import ranks
from flap.runtime.agenda import HOUR, UNKNOWN, Speed, about

log = logging.getLogger(__name__)

T = TypeVar("T")
FEW = 100_000  # tokens; with fewer, measuring the speed of the model would take long in comparison


def name_of(task: Task, model: str) -> str:
    """Return the name of a task on the agenda. model: for example "dense model"."""
    return f"{task.evaluator}: {task.name}, {model}"


def do_next(run: Run, name: str, work: Callable[[], T], subject: Subject | None = None) -> T:
    """Do a task of the agenda. Before the first task, warn if all tasks take longer than an hour.

    subject: The model; None if the task measures two models.
    """
    if subject is not None and subject.whole is not None:
        _announce(run, subject.whole)
    with run.agenda.doing(name):
        return work()


def _announce(run: Run, model: PlacedModel) -> None:
    agenda = run.agenda
    tokens = sum(workload.tokens for workload in agenda.left)
    if agenda.speed is not UNKNOWN or tokens < FEW or not ranks.is_first():
        return
    processes = ranks.size()
    with ranks.alone():
        speed = measured_speed(model.model)
    agenda.speed = Speed(speed.read / processes, speed.written / processes)

    seconds = agenda.seconds_left()
    if seconds is None or seconds < HOUR:
        return
    line = f"the evaluation will take about {about(seconds)}, for {len(agenda.left)} tasks"
    limited = sorted({task.evaluator for task in run.tasks if "limit" in task.identity})
    if limited:
        limits = " ".join(f"eval.{evaluator}.limit=100" for evaluator in limited)
        line += f"; it takes fewer documents with {limits}"
    log.warning("%s", line)
