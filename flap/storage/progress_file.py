"""The progress of a run in progress.json of its folder, for as long as it runs; the served page of a sweep shows it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flap.storage.progress import Step, listening

PROGRESS = "progress.json"
WIDTH = 200  # characters: each state replaces the one before as a whole, in one write
SECONDS_BETWEEN = 1.0


@contextmanager
def progress_file(folder: Path) -> Iterator[None]:
    """Keep the state of the current step in progress.json until the block ends; where that fails, do without."""
    noted = _Noted(folder / PROGRESS)
    try:
        with listening(noted):
            yield
    finally:
        noted.remove()


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


class _Noted:
    """A listener that writes each step into a file, at most one a second."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, float("-inf")
        self.file: IO[str] | None = None
        with suppress(OSError):
            self.file = path.open("w", encoding="utf-8")

    def __call__(self, step: Step) -> None:
        if self.file is None or (step.done and time.monotonic() - self.last < SECONDS_BETWEEN):
            return
        self.last = time.monotonic()
        state = {"stage": step.stage.strip(), "done": step.done, "total": step.total}
        with suppress(OSError):
            self.file.seek(0)
            self.file.write(f"{json.dumps(state):{WIDTH}}\n")
            self.file.flush()

    def remove(self) -> None:
        with suppress(OSError):
            if self.file is not None:
                self.file.close()
            self.path.unlink(missing_ok=True)
