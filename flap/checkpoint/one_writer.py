"""Let one run at a time work on a checkpoint, so that all its files are from the same run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flap.storage.locks import FOR_EVER, file_lock
from flap.storage.new_paths import missing_paths, remove_paths


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Keep other runs from writing this checkpoint, or measuring it, while the block lasts.

    Another run waits until the block ends. The lock is beside the directory, so that it also works
    between machines with caches of their own. Where no lock can be made, the block runs without
    one.
    """
    lock = directory.with_name(f".{directory.name}.lock")
    new_folders = missing_paths(directory.parent, names=())
    with ExitStack() as stack:
        stack.callback(remove_paths, new_folders)  # if nothing was written there
        waiting = f"checkpoint.dir={directory}: waiting for another run that works there"
        state = stack.enter_context(file_lock(lock, "checkpoint.dir", FOR_EVER, waiting))
        if state == "held":
            stack.callback(lock.unlink, missing_ok=True)  # before the lock is released
        yield
