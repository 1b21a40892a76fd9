"""Locks between processes.

Where a file system has no locks, or a folder cannot be written, work goes on without them.

Beside each folder of the cache is its lock. A process holds it alone while it writes the folder or
works in it, or together with others while they read the folder.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

# "held" by this process, "busy": held by another process, "none": no lock can be made
LockState = Literal["held", "busy", "none"]
FOR_EVER = -1  # seconds; filelock's value for waiting without a limit
log = logging.getLogger(__name__)
_warn_once = cache(log.warning)


def lock_of(folder: Path) -> Path:
    """Return the path of a folder's lock."""
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def file_lock(
    path: Path, field: str | None, wait_seconds: float = 0, waiting: str = ""
) -> Iterator[LockState]:
    """Hold the lock file `path` for the duration of the `with` block.

    Yields "held"; "busy" if another process still holds the lock after `wait_seconds`; or "none" if
    no lock can be made, which is logged in one line. The lock of a killed process is free.

    field: the config key of the folder, for this line. If it is None, nothing is logged.
    wait_seconds: the longest wait; `FOR_EVER` has no limit.
    waiting: the line that is logged if another process holds the lock.
    """
    # filelock's fallback is a file whose existence means "held": after a kill it stays for ever
    lock = FileLock(path, fallback_to_soft=False)
    state: LockState = "held"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait_seconds:
                raise
            log.info("%s", waiting)
            lock.acquire(timeout=wait_seconds)
    except Timeout:
        state = "busy"
    except OSError as error:
        state = "none"
        # if the folder cannot be written, the code that writes there says so
        if field and os.access(path.parent, os.W_OK):
            _warn_once(
                "%s: no lock in %s (%s); processes there do not see one another",
                field,
                path.parent,
                str(error),
            )
    try:
        yield state
    finally:
        lock.release()


@cache
def use(folder: Path) -> None:
    """Hold the lock of a folder until this process ends, together with others that use it."""
    with suppress(OSError):  # where no lock can be made, no process removes the folder
        descriptor = os.open(lock_of(folder), os.O_RDWR | os.O_CREAT, 0o666)
        # a process that clears the folder holds the lock for a moment, so this call may wait
        fcntl.flock(descriptor, fcntl.LOCK_SH)
