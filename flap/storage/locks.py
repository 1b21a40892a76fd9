"""Locks between processes. Where a file system has none, or a folder cannot be written, work goes on without them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

LockState = Literal["held", "busy", "none"]


@cache
def _warn_once(field: str, folder: Path, error: str) -> None:
    log.warning("%s: no lock in %s (%s); its work is not shared with other processes", field, folder, error)


@contextmanager
def file_lock(path: Path, field: str, wait_seconds: float = 0) -> Iterator[LockState]:
    """Hold the lock file `path` for as long as the block lasts; the lock of a killed process is free.

    Yields "held"; "busy" where another process holds it after `wait_seconds`; "none" where no lock can be made, which
    is logged in one line that names `field`, the config key of the folder.
    """
    lock = FileLock(path)
    state: LockState = "held"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        state = "busy"
    except (OSError, NotImplementedError) as error:
        # filelock raises NotImplementedError where the file system has no locks, as some network file systems: a run
        # goes on without, and says so.
        if os.access(path.parent, os.W_OK):  # else whoever writes there says so
            _warn_once(field, path.parent, str(error))
        state = "none"
    try:
        yield state
    finally:
        lock.release()
