"""The progress of long steps: a bar on standard error, and listeners such as W&B."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from flap.storage import ranks

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
LONG = (
    10.0  # seconds: of a step that takes longer a log says how long, as its bar does in a terminal
)


@dataclass(frozen=True)
class Step:
    """The progress of a long step."""

    stage: str
    done: int  # items: batches, layers, requests
    total: int | None  # of items; None: unknown
    tokens: int  # 0 if the step counts none
    seconds: float


Listener = Callable[[Step], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` after every item of every long step for as long as the block lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def progress(
    items: Iterable[T], stage: str, count_tokens: Callable[[T], int] = lambda item: 0
) -> Iterator[T]:
    """Yield the items and show how many are done, and the time that the others will take.

    Outside a terminal, that time is logged after the first item, and of the bar only the last state is printed.
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
        if (
            done == 1
            and total
            and not console.is_terminal
            and (left := seconds * (total - 1)) > LONG
        ):
            log.info("%s: about %s to go", stage, timedelta(seconds=round(left)))
        for listener in _listeners:
            listener(Step(stage, done, total, tokens, seconds))


def shared_out(
    items: Iterable[T],
    stage: str,
    work: Callable[[T], R],
    count_tokens: Callable[[T], int] = lambda item: 0,
) -> list[R]:
    """Return what `work` makes of each item, in their order; the processes of a run share the items."""
    own = progress(ranks.own_share(items), stage, count_tokens)
    return ranks.gather_in_order([work(item) for item in own])
