"""File locks between processes.

If a file system does not support locks, or the lock file cannot be written, runs continue without
locks.

Each folder of the cache has a lock file next to the folder. A process that writes files into the
folder holds the lock exclusively. Processes that only read files of the folder share the lock.
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

# "held": held by this process; "busy": held by another process; "none": no lock can be created
LockState = Literal["held", "busy", "none"]
FOR_EVER = -1  # with this value of `wait_seconds`, `file_lock` waits without a limit
log = logging.getLogger(__name__)
_warn_once = cache(log.warning)


def lock_of(folder: Path) -> Path:
    """Return the path of a folder's lock file."""
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def file_lock(
    path: Path, field: str | None, wait_seconds: float = 0, waiting: str = ""
) -> Iterator[LockState]:
    """Hold the lock file `path` for the duration of the `with` block.

    Yield "held" if this process holds the lock, "busy" if another process still holds the lock
    after `wait_seconds`, and "none" if no lock can be created. A killed process loses its locks.

    field: the config key that the warning names if no lock can be created; None: no warning.
    wait_seconds: how long to wait if another process holds the lock; `FOR_EVER` means no limit.
    waiting: a line that is logged before this process waits for another process.
    """
    # filelock's "soft" locks are no alternative, because they stay if the process is killed
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
        # if the folder cannot be written to, do not warn: writing a file raises an error later
        if field and os.access(path.parent, os.W_OK):
            _warn_once(
                "%s: no file lock in %s (%s); processes that use it do not wait for each other",
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
    """Hold a shared lock of a folder until this process ends.

    While the lock is held, no process removes the folder. Other processes can hold a shared lock of
    the same folder at the same time.
    """
    # If no lock can be created, continue without a lock. `remove_unused` cannot create a lock
    # either, and then does not remove the folder.
    with suppress(OSError):
        descriptor = os.open(lock_of(folder), os.O_RDWR | os.O_CREAT, 0o666)
        # this call may have to wait for a moment while another process holds the exclusive lock to
        # check whether the folder is in use
        fcntl.flock(descriptor, fcntl.LOCK_SH)
