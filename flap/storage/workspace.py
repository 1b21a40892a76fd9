"""The working folder of a run, which an interrupted run can resume from."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flap.storage.cache import LABEL, digest
from flap.storage.locks import file_lock

KIND = "streams"


def working_folder(root: Path, key: Mapping[str, Any]) -> Path:
    """Return where the working folder of a key is."""
    return root / KIND / digest(key)


@contextmanager
def workspace(root: Path, key: Mapping[str, Any], resume: bool) -> Iterator[Path]:
    """Yield the working folder of a key, with the files that an interrupted run of the same key has left.

    The folder is deleted when the block ends, and when it raises a ValueError that no OSError caused (bad input). While
    another process uses the folder, or where no lock can be made, a temporary one is yielded instead. key: all that the
    files depend on. resume: false deletes old files.

    Raises:
        ValueError: the cache's folder cannot be written to.
    """
    folder = working_folder(root, key)
    _make(folder.parent)
    with file_lock(folder.with_suffix(".lock"), "cache_dir") as state:
        if state != "held":
            with TemporaryDirectory(dir=folder.parent) as temporary:
                yield Path(temporary)
            return
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        (folder / LABEL).write_text(json.dumps({"key": key}) + "\n")  # what `flap cache` shows
        try:
            yield folder
        except ValueError as error:
            if not isinstance(error.__cause__, OSError):  # bad input fails again: nothing to resume
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _make(folder: Path) -> None:
    """Make a folder below `cache_dir`.

    Raises:
        ValueError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise ValueError(f"cache_dir={folder.parent}: expected a folder that can be written to ({reason})")
