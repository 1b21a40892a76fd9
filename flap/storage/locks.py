"""Locks between processes. Where a file system has none, or a folder cannot be written, work goes on without them.

A folder of the cache is used while a process holds the lock beside it: alone while it writes the folder or works in it,
or together with others that read it.
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

LockState = Literal["held", "busy", "none"]
_warn_once = cache(logging.getLogger(__name__).warning)


def lock_of(folder: Path) -> Path:
    """Return the path of a folder's lock."""
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def file_lock(path: Path, field: str | None, wait_seconds: float = 0) -> Iterator[LockState]:
    """Hold the lock file `path` for as long as the block lasts; the lock of a killed process is free.

    Yields "held"; "busy" where another process holds it after `wait_seconds`; "none" where no lock can be made, which
    is logged in one line that names `field`, the config key of the folder; None: it is not said. There is no lock file
    whose existence says that it is held, as filelock would take instead: that of a killed process stays for ever.
    """
    lock = FileLock(path, fallback_to_soft=False)
    state: LockState = "held"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        state = "busy"
    except OSError as error:
        # where the file system has no locks, as some network file systems, a run goes on without, and says so
        if field and os.access(path.parent, os.W_OK):  # else whoever writes there says so
            _warn_once(
                "%s: no lock in %s (%s); processes there do not see one another",
                field,
                path.parent,
                str(error),
            )
        state = "none"
    try:
        yield state
    finally:
        lock.release()


@cache
def use(folder: Path) -> None:
    """Hold the lock of a folder until this process ends, together with other processes that use the folder."""
    with suppress(OSError):  # where no lock can be made, nothing is removed either
        descriptor = os.open(lock_of(folder), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # who clears the folder holds it for a moment
