"""Simulate how NFS deletes files.

If a process deletes a file that it has open, NFS keeps the file in its folder under another name.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def as_on_nfs(folder: Path) -> Iterator[None]:
    """Within the `with` block, rename open or mapped files below a folder instead of deleting them.

    The new names look like `.nfs00000001`. The renamed files cannot be deleted, and their folder
    cannot be removed, as long as this process has them open or mapped.
    """
    unlink = os.unlink
    rmdir = os.rmdir
    numbers = count(1)
    root = folder.resolve()

    def renaming(path: Any, *, dir_fd: int | None = None) -> None:
        place = _place(path, dir_fd)
        if root not in place.parents or str(place) not in _open_or_mapped_paths():
            unlink(path, dir_fd=dir_fd)
        elif place.name.startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(place))
        else:
            place.rename(place.with_name(f".nfs{next(numbers):08x}"))

    def removing(path: Any, *, dir_fd: int | None = None) -> None:
        _forget(_place(path, dir_fd).glob(".nfs*"))
        rmdir(path, dir_fd=dir_fd)

    def _forget(files: Iterator[Path]) -> None:
        for file in set(files) - set(map(Path, _open_or_mapped_paths())):
            unlink(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", renaming)
        patch.setattr(os, "rmdir", removing)
        yield
    _forget(root.rglob(".nfs*"))


def _place(path: Any, dir_fd: int | None) -> Path:
    base = Path() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}")
    place = base / os.fsdecode(path)
    return place.parent.resolve() / place.name


def _open_or_mapped_paths() -> set[str]:
    mapped = {
        line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()
    }
    return mapped | {os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()}
