"""The progress of long steps: a bar on standard error, for listeners such as W&B, and in progress.json of a run."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from flap.storage import ranks

log = logging.getLogger(__name__)

T = TypeVar("T")
LONG = 10.0  # seconds: of a step that takes longer a log says how long, as its bar does in a terminal
PROGRESS = "progress.json"  # there for as long as its run lasts; the served page of a sweep shows it
WIDTH = 200  # characters: each state replaces the one before as a whole, in one write
SECONDS_BETWEEN = 1.0


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


def begin(stage: str) -> None:
    """Tell the listeners that a stage of a run has begun and that nothing of it is done yet."""
    for listener in _listeners:
        listener(Step(stage, 0, None, 0, 0.0))


def progress(items: Iterable[T], stage: str, count_tokens: Callable[[T], int] = lambda item: 0) -> Iterator[T]:
    """Yield the items and show how many are done, and the time that the others will take.

    Outside a terminal, that time is logged after the first item, and of the bar only the last state is printed.
    """
    if not ranks.is_first():
        yield from items
        return
    total = len(items) if isinstance(items, Sized) else None
    start, tokens, console = time.perf_counter(), 0, Console(stderr=True)
    bar = track(items, description=f"{stage:<28}", total=total, console=console)
    for done, item in enumerate(bar, start=1):
        yield item
        tokens += count_tokens(item)
        seconds = time.perf_counter() - start
        if done == 1 and total and not console.is_terminal and (left := seconds * (total - 1)) > LONG:
            log.info("%s: about %s to go", stage, timedelta(seconds=round(left)))
        for listener in _listeners:
            listener(Step(stage, done, total, tokens, seconds))


@contextmanager
def progress_file(folder: Path) -> Iterator[None]:
    """Keep the state of the current step in progress.json until the block ends; where that fails, do without."""
    path, last = folder / PROGRESS, float("-inf")

    def note(step: Step) -> None:
        nonlocal last
        if step.done and time.monotonic() - last < SECONDS_BETWEEN:
            return
        last = time.monotonic()
        state = {"stage": step.stage.strip(), "done": step.done, "total": step.total}
        with suppress(OSError):
            file.seek(0)
            file.write(f"{json.dumps(state):{WIDTH}}\n")
            file.flush()

    try:
        file = path.open("w", encoding="utf-8")
    except OSError:
        yield
        return
    try:
        with listening(note):
            yield
    finally:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def read_progress(folder: Path) -> str:
    """Return how far a run is, and when it said so: "calibrate 12 of 64 at 14:05:09"; empty if it does not say.

    A killed run's file stays, so that only the time tells it from one that runs.
    """
    path = folder / PROGRESS
    try:
        state, said = json.loads(path.read_text()), time.localtime(path.stat().st_mtime)
        total = f" of {state['total']}" if state["total"] else ""
        done = f" {state['done']}{total}" if state["done"] else ""
        return f"{state['stage']}{done} at {time.strftime('%H:%M:%S', said)}"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
