"""The agenda of an evaluation: its unfinished tasks, and an estimate of the time that they take.

A task evaluates one model, or the dense and the pruned model side by side. The name of a task is,
for example, "zero_shot: boolq, dense model". The workload of a task is the number of tokens that a
model reads and the number of tokens that it generates.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

HOUR = 3600.0  # seconds


class Workload(NamedTuple):
    """The numbers of tokens that a model reads and generates for a task."""

    read: float = 0  # number of tokens in the prompts and texts that the model reads
    written: float = 0  # number of tokens that the model generates, one after another

    @property
    def tokens(self) -> float:
        """The total number of tokens that the model reads and generates."""
        return self.read + self.written

    def part(self, share: float) -> "Workload":
        """Return the workload of a fraction `share` of the task."""
        return Workload(share * self.read, share * self.written)


class Speed(NamedTuple):
    """The speed of a model in seconds per token."""

    read: float  # seconds per token that the model reads
    written: float  # seconds per token that the model generates

    def seconds(self, workload: Workload) -> float:
        """Return the seconds that a task with this workload takes."""
        return workload.read * self.read + workload.written * self.written


# While the speed is unknown, generating a token is assumed to take 8 times as long as reading one.
UNKNOWN = Speed(read=1.0, written=8.0)


class Agenda:
    """The evaluation tasks that a run has not finished yet.

    The time of the tasks is estimated from the speed of the model, and corrected by the time that
    finished tasks have taken. While the speed is unknown and no part of a task is finished, there
    is no estimate.
    """

    def __init__(self) -> None:
        self.speed = UNKNOWN
        self._left: dict[str, Workload] = {}  # unfinished tasks and their workloads
        self._current = ""  # name of the current task; empty between tasks
        self._number = 0  # position of the current task, counted from 1
        self._finished: list[Workload] = []  # the workloads of the finished tasks
        self._seconds = 0.0  # wall-clock seconds of the finished tasks
        self._begin = 0.0  # start time of the current task
        # fraction of the current task that was done before the run was interrupted and resumed
        self._done_before = 0.0

    def plan(self, tasks: Mapping[str, Workload]) -> None:
        """Set the tasks to do, and their workloads.

        The size of a task is unknown if its workload has no tokens. Such a task gets the average
        workload of the tasks of known size.
        """
        known = [one for one in tasks.values() if one.tokens]
        average = Workload()
        if known:
            read = sum(one.read for one in known)
            written = sum(one.written for one in known)
            average = Workload(read / len(known), written / len(known))
        self._left = {name: one if one.tokens else average for name, one in tasks.items()}

    @contextmanager
    def doing(self, task: str) -> Iterator[None]:
        """Make a task the current task for the duration of a `with` block.

        The progress lines of the block begin with the title of the current task.
        """
        self._left.setdefault(task, Workload())
        self._current = task
        self._number += 1
        self._begin = time.perf_counter()
        self._done_before = 0.0
        _open.append(self)
        try:
            yield
            self._seconds += time.perf_counter() - self._begin
            self._finished.append(self._left[task].part(1 - self._done_before))
        finally:
            _open.remove(self)
            self._left.pop(task)
            self._current = ""

    def resume(self, share: float) -> None:
        """Record which fraction of the current task was done before the run was interrupted."""
        self._done_before = share

    def drop(self, task: str) -> None:
        """Remove a task that is not needed or cannot be done."""
        self._left.pop(task, None)

    @property
    def left(self) -> list[Workload]:
        """The workloads of all unfinished tasks, including the current task."""
        return list(self._left.values())

    @property
    def title(self) -> str:
        """The current task and its position, such as "zero_shot, task 1 of 7 (boolq)"."""
        evaluator, _, name = self._current.partition(": ")
        return f"{evaluator}, task {self._number} of {self._number + len(self._left) - 1} ({name})"

    def seconds_left(self, share: float = 0.0) -> float | None:
        """Return the seconds that all unfinished tasks will take; None if no estimate is possible.

        share: the finished fraction of the current task.
        """
        current = 0.0
        seconds = self._seconds
        if self._current:
            current = self.speed.seconds(self._left[self._current])
            seconds += time.perf_counter() - self._begin
        done = sum(map(self.speed.seconds, self._finished))
        done += (share - self._done_before) * current
        left = sum(map(self.speed.seconds, self._left.values())) - share * current
        if done > 0:
            return left * seconds / done
        return None if self.speed is UNKNOWN else left


_open: list[Agenda] = []  # the agendas that have a current task; usually at most one


def current_agenda() -> Agenda | None:
    """Return the agenda that has a current task; None if no task is running."""
    return _open[-1] if _open else None


def about(seconds: float) -> str:
    """Return a rounded duration with its unit, such as "11 h", "1.8 h", "40 min" or "30 s"."""
    if seconds >= 9.5 * HOUR:
        return f"{seconds / HOUR:,.0f} h"
    if seconds >= HOUR:
        return f"{seconds / HOUR:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"
