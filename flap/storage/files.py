"""The location of the cache, and atomic files and directories: written completely or not at all."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from uuid import uuid4

from platformdirs import user_cache_path
from psutil import pid_exists

from flap.storage.locks import file_lock


def cache_root(configured: str | None) -> Path:
    """Return the cache folder: the config's `cache_dir`, else $FLAP_CACHE_DIR, else the user's cache folder."""
    return Path(configured or os.environ.get("FLAP_CACHE_DIR") or user_cache_path("flap"))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a killed process leaves the old file or the new one, never a partial one."""
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until the bytes of a file are on the disk, those that were written through mapped memory too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `target` only if the block ends without an error.

    Its name has host and process, by which the next writer finds and removes what a killed process has left.
    """
    ours = f".{target.name}.{platform.node()}-"
    scratch = target.with_name(f"{ours}{os.getpid()}")
    for left in target.parent.glob(f"{escape(ours)}*"):
        process = left.name.removeprefix(ours)
        if process.isdigit() and not pid_exists(int(process)):
            left.unlink(missing_ok=True)
    try:
        yield scratch
        sync(scratch)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path, field: str) -> Iterator[Path]:
    """Yield a temporary folder that replaces `target` only if the block ends without an error.

    While the block lasts a lock beside the folder says that its process is alive; `remove_leftovers` goes by it.
    field: the config key of the folder, for messages.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    name = f".{target.name}.{uuid4().hex[:8]}"
    scratch, old, lock = (target.with_name(f"{name}.{kind}") for kind in ("new", "old", "lock"))
    with file_lock(lock, field):
        scratch.mkdir()
        try:
            yield scratch
            _share_and_sync(scratch)
            _replace(scratch, target, old)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            if not old.exists():  # else the next process that comes here puts it back
                lock.unlink(missing_ok=True)


def _share_and_sync(folder: Path) -> None:
    """Give all files the default permissions, where a library lets their owner alone read them, and sync them."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
        sync(file)


def remove_leftovers(target: Path) -> None:
    """Remove what dead processes have left beside a folder, and put an old folder back that one of them had moved."""
    for lock in target.parent.glob(f".{escape(target.name)}.*.lock"):
        with file_lock(lock, str(target)) as state:
            if state != "held":
                continue
            scratch, old = lock.with_suffix(".new"), lock.with_suffix(".old")
            if old.exists() and not target.exists():
                old.rename(target)
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _replace(new: Path, target: Path, old: Path) -> None:
    """Replace a folder by two renames, as a non-empty one cannot be overwritten; an error restores the old one."""
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
