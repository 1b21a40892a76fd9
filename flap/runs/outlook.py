"""The estimate of the time that an evaluation takes, before its first task."""

import logging
from collections.abc import Sequence

from flap.evaluation import Task
from flap.evaluation.request_cost import measured_speed
from flap.models import PlacedModel
from flap.runtime import ranks
from flap.runtime.agenda import HOUR, UNKNOWN, Agenda, Speed, about

log = logging.getLogger(__name__)

FEW = 100_000  # tokens; with fewer, measuring the speed of the model would take long in comparison


def announce(agenda: Agenda, tasks: Sequence[Task], model: PlacedModel) -> None:
    """Warn if the tasks of the agenda take longer than an hour. It warns only once.

    tasks: all tasks of the run. model: the model in memory, whose speed is measured.
    """
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
    limited = sorted({task.evaluator for task in tasks if "limit" in task.identity})
    if limited:
        limits = " ".join(f"eval.{evaluator}.limit=100" for evaluator in limited)
        line += f"; it takes fewer documents with {limits}"
    log.warning("%s", line)
