"""The progress bar of every long step, on standard error; listeners such as W&B get the same numbers."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """The progress of a long step: items (batches, layers, requests) done, and tokens if the step counts them."""

    stage: str
    done: int
    total: int | None
    tokens: int
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


def progress(items: Iterable[T], stage: str, count_tokens: Callable[[T], int] = lambda item: 0) -> Iterator[T]:
    """Yield the items and show how many are done. Outside a terminal, only the last state is printed."""
    total = len(items) if isinstance(items, Sized) else None
    start, tokens = time.perf_counter(), 0
    bar = track(items, description=f"{stage:<28}", total=total, console=Console(stderr=True))
    for done, item in enumerate(bar, start=1):
        yield item
        tokens += count_tokens(item)
        for listener in _listeners:
            listener(Step(stage, done, total, tokens, time.perf_counter() - start))
