"""The location of the cache, and atomic files and directories: written completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from platformdirs import user_cache_path


def cache_root(configured: str | None) -> Path:
    """Return the cache folder: the config's `cache_dir`, else $FLAP_CACHE_DIR, else the user's cache folder."""
    return Path(configured or os.environ.get("FLAP_CACHE_DIR") or user_cache_path("flap"))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a killed process leaves the old file or the new one, never a partial one."""
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `target` only if the block ends without an error."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `target` only if the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield scratch
        _set_default_permissions(scratch)
        _replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(new: Path, target: Path) -> None:
    """Replace a folder by two renames, as a non-empty one cannot be overwritten; an error restores the old one."""
    if not target.exists():
        new.rename(target)
        return
    old = Path(mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.rename(old / "old")
        new.rename(target)
    except BaseException:
        # if this fails too, the old folder is not lost: it is deleted only when the new one is in place
        if (old / "old").exists():
            (old / "old").rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _set_default_permissions(folder: Path) -> None:
    """Give a folder and its files the default permissions: temporary ones can be read by their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
