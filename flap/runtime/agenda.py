"""The tasks of an evaluation, and how long those that are still to come will take.

A task is named "zero_shot: boolq, dense model".
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

HOUR = 3600.0  # seconds


class Workload(NamedTuple):
    """How much a model has to do for a task, in tokens."""

    read: float = 0  # tokens of prompts and texts
    written: float = 0  # tokens that the model generates, one after another

    @property
    def tokens(self) -> float:
        """The number of all tokens."""
        return self.read + self.written

    def part(self, share: float) -> "Workload":
        """Return a share of this workload."""
        return Workload(share * self.read, share * self.written)


class Speed(NamedTuple):
    """How fast a model is, in seconds per token."""

    read: float
    written: float

    def seconds(self, workload: Workload) -> float:
        """Return how long a task takes."""
        return workload.read * self.read + workload.written * self.written


UNKNOWN = Speed(read=1.0, written=8.0)  # relative costs, as the real seconds are unknown


class Agenda:
    """The tasks that are still to be done.

    Their time is estimated from the speed of the model, if it is known, and corrected by the time
    that the finished tasks have taken.
    """

    def __init__(self) -> None:
        self.speed = UNKNOWN
        self._left: dict[str, Workload] = {}  # the tasks that are not finished
        self._current = ""  # the task that is being done; empty between tasks
        self._number = 0  # the number of the current task, from 1 on
        self._finished: list[Workload] = []  # the workloads of the finished tasks
        self._seconds = 0.0  # wall-clock seconds of the finished tasks
        self._begin = 0.0  # when the current task began
        self._done_before = 0.0  # the share of the current task that an earlier start has done

    def plan(self, tasks: Mapping[str, Workload]) -> None:
        """Set the tasks that are still to come. A task of unknown size counts as an average one."""
        known = [one for one in tasks.values() if one.tokens]
        average = Workload()
        if known:
            read = sum(one.read for one in known)
            written = sum(one.written for one in known)
            average = Workload(read / len(known), written / len(known))
        self._left = {name: one if one.tokens else average for name, one in tasks.items()}

    @contextmanager
    def doing(self, task: str) -> Iterator[None]:
        """Do a task inside the block, where `progress` shows the progress of this task."""
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
        """Note that an earlier start has done a share of the current task, which took no time."""
        self._done_before = share

    def drop(self, task: str) -> None:
        """Remove a task that is not needed or is impossible."""
        self._left.pop(task, None)

    @property
    def left(self) -> list[Workload]:
        """The workloads of the tasks that are not finished."""
        return list(self._left.values())

    @property
    def title(self) -> str:
        """The current task and its number, such as "zero_shot, task 1 of 7 (boolq)"."""
        evaluator, _, name = self._current.partition(": ")
        return f"{evaluator}, task {self._number} of {self._number + len(self._left) - 1} ({name})"

    def seconds_left(self, share: float = 0.0) -> float | None:
        """Return the seconds that all unfinished tasks will take; None if no estimate is possible.

        share: The share of the current task that is done.
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


_open: list[Agenda] = []  # the agenda of the task that is being done


def current_agenda() -> Agenda | None:
    """Return the agenda of the task that is being done."""
    return _open[-1] if _open else None


def about(seconds: float) -> str:
    """Format a duration with two digits: "11 h", "1.8 h", "40 min", "30 s"."""
    if seconds >= 9.5 * HOUR:
        return f"{seconds / HOUR:,.0f} h"
    if seconds >= HOUR:
        return f"{seconds / HOUR:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"
