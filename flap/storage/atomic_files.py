"""Write files and folders atomically, which means completely or not at all.

A file or folder is first written under a temporary name, and is renamed when it is complete.
"""

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
    """Return the folder of flap's cache.

    This is the folder `configured` if it is not None, else the folder that the environment variable
    FLAP_CACHE_DIR names, else the folder `flap` in the user's cache directory.

    configured: the value of the option `cache_dir`.

    Raises:
        ValueError: FLAP_CACHE_DIR is not a path. Or neither `cache_dir` nor FLAP_CACHE_DIR is set,
            and the user has no home directory.
    """
    variable = os.environ.get("FLAP_CACHE_DIR", "")
    check_path("FLAP_CACHE_DIR", variable)
    try:
        return Path(configured or variable or user_cache_path("flap"))
    except RuntimeError as error:
        raise ValueError(f"cache_dir: set FLAP_CACHE_DIR to a folder ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    If the process is killed while it writes, the file has either its old or its new content. The
    folder of the file is created if it does not exist.
    """
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until all bytes of a file are on the disk, even those written through a memory map."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, into which the `with` block writes.

    At the end of the block, the temporary file replaces `target`, unless the block raises an error.
    """
    with _scratch_beside(target, None) as scratch:
        yield scratch
        sync(scratch)
        scratch.replace(target)


@contextmanager
def atomic_directory(target: Path, field: str) -> Iterator[Path]:
    """Yield the path of a temporary folder, into which the `with` block writes files.

    At the end of the block, the temporary folder replaces `target`, unless the block raises an
    error.

    field: the config key that sets the path of the folder; it is named in messages.
    """
    with _scratch_beside(target, field) as scratch:
        scratch.mkdir()
        yield scratch
        _share_and_sync(scratch)
        _replace(scratch, target)


@contextmanager
def _scratch_beside(target: Path, field: str | None) -> Iterator[Path]:
    """Yield a temporary path next to `target`, for the file or folder that will replace `target`.

    If a file or folder still has the temporary path at the end of the block, it is removed. During
    the block, this process holds a lock file next to the temporary path. From this lock,
    `remove_leftovers` in another process knows that this process is alive. A process id would not
    be sufficient, because processes in two containers with the same host name may have the same id.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    scratch = target.with_name(f".{target.name}.{uuid4().hex[:8]}.new")
    with file_lock(scratch.with_suffix(".lock"), field):
        try:
            yield scratch
        except SafetensorError as error:
            # The message of safetensors, for example about a full disk, does not name the file.
            raise OSError(f"{target}: {error}") from error
        finally:
            _remove(scratch)


def _remove(scratch: Path) -> None:
    """Remove a temporary file or folder, and then its lock file, which this process holds.

    If the temporary file or folder cannot be removed, the lock file stays. The next process that
    writes the same target then tries again to remove the temporary file or folder.
    """
    if scratch.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        scratch.unlink(missing_ok=True)
    if not scratch.exists() and not scratch.with_suffix(".old").exists():
        scratch.with_suffix(".lock").unlink(missing_ok=True)


def _share_and_sync(folder: Path) -> None:
    """Give all files in a folder the user's default permissions, and flush the files to disk.

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
    """Replace the folder `target` by the folder `new`. If this fails, restore the old folder.

    First `target` is renamed, and then `new` gets the name of `target`. One rename is not enough,
    because a rename cannot overwrite a folder that is not empty.
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
    """Return whether an atomic write has given this name to a temporary file, folder or lock."""
    return bool(re.fullmatch(r"\..+\.[0-9a-f]{8}\.(new|old|lock)", name))


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files and folders of `target` that killed processes have left behind.

    To replace a folder, `_replace` renames the old folder, and then renames the new folder. If a
    process was killed between these two renames, the old folder is restored.
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
    """Remove a folder of the cache and its lock file, unless another process uses the folder.

    Return whether the folder no longer exists.

    This process locks the folder before it removes anything. If this is impossible, the folder
    stays. The lock file is removed before the lock is released. Another process that waits for the
    lock then notices that the lock file is gone, and creates a new lock file.
    """
    with file_lock(lock_of(folder), None) as state:
        if state == "held":
            shutil.rmtree(folder, ignore_errors=True)
            lock_of(folder).unlink(missing_ok=True)
    return not folder.exists()


def free_space(path: Path) -> int:
    """Return the number of free bytes on the disk of a path. The path need not exist yet."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def bytes_below(folder: Path) -> int:
    """Return the total size in bytes of all files in a folder, or 0 if the folder does not exist.

    Files that another process removes during the count are skipped.
    """
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
    return total
