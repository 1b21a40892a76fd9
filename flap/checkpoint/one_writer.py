"""Let only one run at a time write a checkpoint, so that all of its files come from one run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flap.storage.locks import FOR_EVER, file_lock
from flap.storage.new_paths import missing_paths, remove_paths


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Keep other runs from writing or measuring a checkpoint during a `with` block.

    Other runs wait until the block ends. The lock file is next to the checkpoint's directory, and
    not in flap's cache, so that runs on machines with separate caches also wait. If no lock can be
    created, the block runs without a lock.
    """
    lock = directory.with_name(f".{directory.name}.lock")
    new_folders = missing_paths(directory.parent, names=())
    with ExitStack() as stack:
        stack.callback(remove_paths, new_folders)  # keeps folders that are not empty
        waiting = f"checkpoint.dir={directory}: waiting for another run that works there"
        state = stack.enter_context(file_lock(lock, "checkpoint.dir", FOR_EVER, waiting))
        if state == "held":
            stack.callback(lock.unlink, missing_ok=True)  # runs before the lock is released
        yield
