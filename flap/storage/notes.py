"""The folder of a long work, and notes on its steps, which an interrupted run leaves to the next."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from flap.storage.cache import Kind
from flap.storage.files import atomic_file

T = TypeVar("T")


@dataclass(frozen=True)
class WorkFolder:
    """A folder that an interrupted run resumes from. path: None if nothing is kept, and work begins anew."""

    path: Path | None = None

    def __truediv__(self, name: str) -> "WorkFolder":
        """Return the folder of a part of the work."""
        return self if self.path is None else WorkFolder(self.path / name)

    def clear(self) -> None:
        """Delete what the folder holds."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)


NOT_KEPT = WorkFolder()


class Notes(Generic[T]):
    """What was found in each step, in memory, and where work is kept in files of a kind."""

    def __init__(self, kind: Kind[T], work: WorkFolder = NOT_KEPT) -> None:
        self.kind, self.folder = kind, work.path
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._found: dict[int, T] = {}

    def __contains__(self, step: int) -> bool:
        return step in self._found or (self.folder is not None and self._file(self.folder, step).exists())

    def __iter__(self) -> Iterator[T]:
        """Return what was found in all steps that were written or read."""
        return iter(self._found.values())

    def write(self, step: int, found: T) -> None:
        """Note what was found, of a layer before the walk records that the layer is done."""
        self._found[step] = found
        if self.folder is not None:
            with atomic_file(self._file(self.folder, step)) as scratch:
                self.kind.write(found, scratch)

    def read(self, step: int) -> T:
        """Return what was found in a step of this run or of the one that was interrupted."""
        if step not in self._found and self.folder is not None:
            self._found[step] = self.kind.read(self._file(self.folder, step))
        return self._found[step]

    def _file(self, folder: Path, step: int) -> Path:
        return folder / f"{self.kind.name}-{step}"
