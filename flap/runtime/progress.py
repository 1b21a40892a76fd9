"""The progress of long steps: a bar on standard error, and listeners such as the W&B tracker."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from flap.runtime import ranks

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
LONG = 10.0  # seconds; the log says of longer steps how long they will take


@dataclass(frozen=True)
class Step:
    """The progress of a long step."""

    stage: str  # the name of the step
    done: int  # items that are done: batches, layers, requests
    total: int | None  # number of items; None: unknown
    tokens: int  # tokens that are done; 0 if the step does not count tokens
    seconds: float  # since the step began


Listener = Callable[[Step], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` after every item of every long step, for the duration of the `with` block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def progress(
    items: Iterable[T], stage: str, count_tokens: Callable[[T], int] = lambda item: 0
) -> Iterator[T]:
    """Yield the items, and show how many are done and how long the others will take.

    Outside a terminal the log says after the first item how long the others will take, and only the
    last state of the bar is printed. On every process except rank 0 nothing is shown.
    """
    if not ranks.is_first():
        yield from items
        return

    total = len(items) if isinstance(items, Sized) else None
    start = time.perf_counter()
    tokens = 0
    console = Console(stderr=True)
    bar = track(items, description=f"{stage:<28}", total=total, console=console)
    for done, item in enumerate(bar, start=1):
        yield item

        tokens += count_tokens(item)
        seconds = time.perf_counter() - start
        if done == 1 and total and not console.is_terminal:
            _log_estimate(stage, seconds * (total - 1))
        for listener in _listeners:
            listener(Step(stage, done, total, tokens, seconds))


def _log_estimate(stage: str, seconds_left: float) -> None:
    if seconds_left > LONG:
        log.info("%s: about %s to go", stage, timedelta(seconds=round(seconds_left)))


def shared_out(
    items: Iterable[T],
    stage: str,
    work: Callable[[T], R],
    count_tokens: Callable[[T], int] = lambda item: 0,
) -> list[R]:
    """Return the results of `work` on each item, in the order of the items.

    The processes of a run share the items.
    """
    share = progress(ranks.own_share(items), stage, count_tokens)
    return ranks.gather_in_order([work(item) for item in share])
