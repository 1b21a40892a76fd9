"""Warn the user before a long evaluation, with an estimate of its time."""

import logging
from collections.abc import Sequence

from flap.evaluation import Task
from flap.evaluation.request_cost import measured_speed
from flap.models import PlacedModel
from flap.runtime import ranks
from flap.runtime.agenda import HOUR, UNKNOWN, Agenda, Speed, about

log = logging.getLogger(__name__)

# If the remaining tasks have fewer tokens than this, no time is estimated, because measuring the
# speed of the model may take longer than the evaluation.
FEW = 100_000


def announce(agenda: Agenda, tasks: Sequence[Task], model: PlacedModel) -> None:
    """Warn once if the remaining tasks will take an hour or more.

    tasks: all tasks of the run, including the tasks that are done.
    model: the model in memory, whose speed is measured.
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
