"""Write files and directories atomically, which means completely or not at all."""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

from platformdirs import user_cache_path
from safetensors import SafetensorError

from flap.config.paths import check_path
from flap.storage.locks import file_lock, lock_of


def cache_root(configured: str | None) -> Path:
    """Return the cache folder.

    This is the folder `configured` if it is set, else the folder that the environment variable
    FLAP_CACHE_DIR names, else the folder `flap` in the user's cache directory.

    configured: the option `cache_dir`.

    Raises:
        ValueError: FLAP_CACHE_DIR is not a path; or the user has no home directory, and neither the
            option nor the variable is set.
    """
    variable = os.environ.get("FLAP_CACHE_DIR", "")
    check_path("FLAP_CACHE_DIR", variable)
    try:
        return Path(configured or variable or user_cache_path("flap"))
    except RuntimeError as error:
        raise ValueError(f"cache_dir: set FLAP_CACHE_DIR to a folder ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, so that a killed process leaves either the old or the new file.

    The folder of the file is created if it does not exist.
    """
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file is on the disk, including bytes that were written through a memory map."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `target` if the block raises no error."""
    with _scratch_beside(target, None) as scratch:
        yield scratch
        sync(scratch)
        scratch.replace(target)


@contextmanager
def atomic_directory(target: Path, field: str) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `target` if the block raises no error.

    field: the config key that sets the folder, for messages.
    """
    with _scratch_beside(target, field) as scratch:
        scratch.mkdir()
        yield scratch
        _share_and_sync(scratch)
        _replace(scratch, target)


@contextmanager
def _scratch_beside(target: Path, field: str | None) -> Iterator[Path]:
    """Yield a temporary path next to `target`, for the file or folder that will replace it.

    If the temporary path still exists at the end of the block, it is removed. Inside the block,
    this process holds a lock file next to the path. The lock tells `remove_leftovers` that
    the process is alive. A process id would not be sufficient, because processes in two containers
    with the same host name may have the same id.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    scratch = target.with_name(f".{target.name}.{uuid4().hex[:8]}.new")
    with file_lock(scratch.with_suffix(".lock"), field):
        try:
            yield scratch
        except SafetensorError as error:
            # if the disk is full, the message of safetensors does not name the file
            raise OSError(f"{target}: {error}") from error
        finally:
            _remove(scratch)


def _remove(scratch: Path) -> None:
    """Remove a temporary file or folder, and then the lock file that this process holds for it.

    If the removal fails, the lock file stays, and the next process that writes the same target
    tries the removal again.
    """
    if scratch.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        scratch.unlink(missing_ok=True)
    if not scratch.exists() and not scratch.with_suffix(".old").exists():
        scratch.with_suffix(".lock").unlink(missing_ok=True)


def _share_and_sync(folder: Path) -> None:
    """Give all files in a folder the user's default permissions, and wait until they are on disk.

    The permissions are set because some libraries write files that only their owner can read.
    """
    mask = os.umask(0)  # umask can be read only by setting it
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        permissions = 0o777 if path.is_dir() else 0o666
        path.chmod(permissions & ~mask)
        sync(path)


def _replace(new: Path, target: Path) -> None:
    """Replace the folder `target` by the folder `new`. If an error occurs, restore the old folder.

    This takes two renames, because a rename cannot overwrite a non-empty folder.
    """
    if not target.exists():
        new.rename(target)
        return

    old = new.with_suffix(".old")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_scratch(name: str) -> bool:
    """Return whether this is the name of a temporary file, folder or lock of an atomic write."""
    return bool(re.fullmatch(r"\..+\.[0-9a-f]{8}\.(new|old|lock)", name))


def remove_leftovers(target: Path) -> None:
    """Remove temporary files and folders that dead processes have left next to a path.

    If a process was killed between the two renames that replace a folder, the old folder is
    restored.
    """
    eight_digits = "[0-9a-f]" * 8
    for lock in target.parent.glob(f".{escape(target.name)}.{eight_digits}.lock"):
        with file_lock(lock, None) as state:
            if state != "held":
                continue
            old = lock.with_suffix(".old")
            if old.exists() and not target.exists():
                old.rename(target)
            shutil.rmtree(old, ignore_errors=True)
            _remove(lock.with_suffix(".new"))


def remove_unused(folder: Path) -> bool:
    """Remove a folder of the cache and its lock file, unless a process uses the folder.

    Return whether the folder is gone.

    The lock file is removed while this process holds the lock. A process that waits for the lock
    then sees that the file is gone, and creates a new file. If no lock can be created, the folder
    stays.
    """
    with file_lock(lock_of(folder), None) as state:
        if state == "held":
            shutil.rmtree(folder, ignore_errors=True)
            lock_of(folder).unlink(missing_ok=True)
    return not folder.exists()


def free_space(path: Path) -> int:
    """Return the free bytes on the disk that contains a path. The path need not exist yet."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def bytes_below(folder: Path) -> int:
    """Return the total bytes of all files in a folder; 0 if it does not exist.

    Files that other processes remove in the meantime are skipped.
    """
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
    return total
