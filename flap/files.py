"""Folders and files on disk: where the cache lies, and how a folder is written so that a kill leaves old or new."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import mkdtemp

from platformdirs import user_cache_path


def cache_root(configured: str | None) -> Path:
    """`cache_dir` of the config, else the environment's FLAP_CACHE_DIR, else the user's cache folder."""
    return Path(configured or os.environ.get("FLAP_CACHE_DIR") or user_cache_path("flap"))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, and nothing in between."""
    with file_written_whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def file_written_whole(target: Path) -> Iterator[Path]:
    """Yield the path of a file beside `target` that takes its place only when the block ends without an error."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that takes its place only when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        _share(scratch)
        _replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def written_in_steps(target: Path, key: str) -> Iterator[Path]:
    """As `written_whole`, but an interrupted or killed process leaves the folder to the next one with the same key.

    What was left under other keys is removed.
    """
    scratch = target.parent / f".{target.name}.steps-{key}"
    for other in set(unfinished_steps(target)) - {scratch}:
        shutil.rmtree(other, ignore_errors=True)
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
        _share(scratch)
        _replace(scratch, target)
    except Exception:  # whatever the block raises would be raised again; Ctrl-C is no Exception, and keeps the work
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def unfinished_steps(target: Path) -> list[Path]:
    """The folders that interrupted `written_in_steps` of this target have left."""
    return list(target.parent.glob(f".{escape(target.name)}.steps-*"))


def _replace(new: Path, target: Path) -> None:
    """Two renames, because a folder that is not empty cannot be renamed over; the old one comes back on an error."""
    if not target.exists():
        new.rename(target)
        return
    old = Path(mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.rename(old / "old")
        new.rename(target)
    except BaseException:
        # should this fail too, the old one stays where it is: it is removed only once the new one is in place
        if (old / "old").exists():
            (old / "old").rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _share(folder: Path) -> None:
    """Give folder and files the permissions of any new file: temporary ones are for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
