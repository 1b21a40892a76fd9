"""File locks between processes.

If a file system has no locks, or a folder cannot be written, runs continue without locks.

Each folder of the cache has a lock file next to it. A process that writes files into the folder
holds the lock exclusively. Processes that only read the folder share the lock.
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

    Yields "held" if this process holds the lock, "busy" if another process still holds it after
    `wait_seconds`, and "none" if no lock can be created. A process that is killed loses its locks.

    field: the config key of the folder, for a warning if no lock can be created; None: no warning.
    wait_seconds: the maximum wait; with `FOR_EVER`, there is no limit.
    waiting: a line that is logged before the wait if another process holds the lock.
    """
    # without this option, filelock might use a lock file that stays if its process is killed
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
        # a folder that cannot be written needs no warning: writing into it raises an error later
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
    """Hold the lock of a folder until this process ends. Other processes can share the lock."""
    with suppress(OSError):  # if no lock can be created, no process removes the folder
        descriptor = os.open(lock_of(folder), os.O_RDWR | os.O_CREAT, 0o666)
        # this call may have to wait for a moment, while another process checks whether the folder
        # is in use
        fcntl.flock(descriptor, fcntl.LOCK_SH)
