"""Show the progress of long steps: as a bar in a terminal, and elsewhere as one line per minute.

A step is a loop over items, such as batches or layers. A stage of a run, such as calibration, can
have several steps. The log file always gets the lines.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from flap.runtime import ranks
from flap.runtime.agenda import about, current_agenda

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
SECONDS_BETWEEN_LINES = 60.0
# Pass this dict as `extra` to a call of a logger if the message should appear only in log files,
# and not in the terminal.
ONLY_IN_FILES = {"only_in_files": True}


@dataclass(frozen=True)
class Step:
    """The progress of a long step at one point in time."""

    stage: str  # the name of the step, such as "calibrate"
    done: int  # number of finished items, such as batches, layers, requests or tokens
    total: int  # total number of items
    tokens: int  # number of tokens in the finished items; 0 if the step does not count tokens
    seconds: float  # seconds since the step began


Listener = Callable[[Step], None]
# The type of the function that `showing` yields. A step calls this function as `reach(done)` or
# `reach(done, tokens)` whenever items are finished. `done` is the number of finished items, and
# `tokens` is the number of tokens in these items.
Reach = Callable[..., None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """During a `with` block, call `listener` whenever a long step has finished items.

    The listener gets the progress of the step as a `Step`.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def progress(
    items: Sequence[T], stage: str, count_tokens: Callable[[T], int] = lambda item: 0
) -> Iterator[T]:
    """Yield the items, and show the number of finished items and the remaining time.

    stage: the name of the step that works on the items.
    count_tokens: returns the number of tokens in an item.
    """
    tokens = 0
    with showing(stage, len(items)) as reach:
        for done, item in enumerate(items, start=1):
            yield item
            tokens += count_tokens(item)
            reach(done, tokens)


@contextmanager
def showing(stage: str, total: int) -> Iterator[Reach]:
    """Show the progress of a step for the duration of the `with` block.

    Yields a function, which the block calls as `reach(done)` or `reach(done, tokens)`, with the
    number of finished items and the number of tokens in these items. Only rank 0 shows the
    progress.

    stage: the name of the step. total: the number of all items.
    """
    if not ranks.is_first():
        yield _show_nothing
        return
    shown = _Shown(stage, total)
    with shown.bar:
        yield shown.reach


def shared_out(
    items: Sequence[T],
    stage: str,
    work: Callable[[T], R],
    count_tokens: Callable[[T], int] = lambda item: 0,
) -> list[R]:
    """Call `work` for each item, and return the results in the order of the items.

    The processes of a run divide the items among themselves.

    stage: the name of the step in progress bars.
    count_tokens: returns the number of tokens in an item.
    """
    share = progress(ranks.own_share(items), stage, count_tokens)
    return ranks.gather_in_order([work(item) for item in share])


def _show_nothing(done: int, tokens: int = 0) -> None:
    pass


class _Shown:
    """Shows the progress of one step: as a bar in a terminal, and elsewhere as lines in the log."""

    def __init__(self, stage: str, total: int) -> None:
        self.stage = stage
        self.total = total
        self.start = time.perf_counter()
        self.next_line = self.start + SECONDS_BETWEEN_LINES
        # Items that are finished within the first second are assumed to be results of an
        # interrupted run, which are only read from files. The estimate of the speed leaves these
        # items out.
        self.read_by = self.start  # time of the last item that was finished within the first second
        self.read = 0  # number of items that were finished within the first second
        console = Console(stderr=True)
        self.in_terminal = console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self.in_terminal,
        )
        self.row = self.bar.add_task(f"{stage:<28}", total=total)

    def reach(self, done: int, tokens: int = 0) -> None:
        """Show that `done` items, which have `tokens` tokens in total, are finished."""
        now = time.perf_counter()
        agenda = current_agenda()
        if now - self.start < 1:
            self.read_by = now
            self.read = done
            if agenda is not None:
                agenda.resume(done / self.total)
        self.bar.update(self.row, completed=done)
        if now >= self.next_line and done < self.total:
            self.next_line = now + SECONDS_BETWEEN_LINES
            extra = ONLY_IN_FILES if self.in_terminal else None
            log.info(self._line(done, now), extra=extra)
        for listener in _listeners:
            listener(Step(self.stage, done, self.total, tokens, now - self.start))

    def _line(self, done: int, now: float) -> str:
        share = done / self.total
        left = "time left unknown"
        if done > self.read:
            seconds_each = (now - self.read_by) / (done - self.read)
            left = f"{timedelta(seconds=round(seconds_each * (self.total - done)))} left"
        line = f"{100 * share:.0f} %, {left}"
        agenda = current_agenda()
        if agenda is None:
            return f"{self.stage}: {line}"
        all_left = agenda.seconds_left(share)
        if all_left is not None:
            line += f"; all tasks about {about(all_left)}"
        return f"{agenda.title}: {line}"
