"""The working directory of a run, from which the run resumes after an interruption.

A stage of a run, such as calibration, consists of numbered steps, such as one step for each layer.
`Notes` stores the results of finished steps in the working directory.
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from flap.runtime import ranks
from flap.storage.artefacts import Kind, digest, file_sha256
from flap.storage.atomic_files import atomic_file, remove_unused, write_text
from flap.storage.locks import file_lock, lock_of

log = logging.getLogger(__name__)
T = TypeVar("T")

KIND = "streams"
CHECKSUM = ".sha256"  # suffix of the file with the checksum of a stored result
# when a run opens its working directory, it removes other working directories that have not been
# used for this many seconds
SECONDS_KEPT = 30 * 24 * 3600


@dataclass(frozen=True)
class WorkFolder:
    """The working directory of a run, or a folder inside the working directory."""

    # if None, no files are written, and an interrupted run starts again from the beginning
    path: Path | None = None

    def __truediv__(self, name: str) -> "WorkFolder":
        """Return the subfolder with this name, for example for the files of one stage."""
        if self.path is None:
            return self
        return WorkFolder(self.path / name)

    def clear(self) -> None:
        """Delete the folder.

        Rank 0 deletes the folder, and all other processes wait for this. Therefore each process can
        write new files into the folder afterwards.
        """
        if self.path is not None:
            ranks.by_first(shutil.rmtree)(self.path, ignore_errors=True)


NOT_KEPT = WorkFolder()


class Notes(Generic[T]):
    """The results of the numbered steps of a stage, for example one step for each layer.

    The results are in memory and, if there is a working directory, also in files. For each file,
    the checksum is stored in a second file. A damaged file counts as missing, so that the step is
    done again.
    """

    def __init__(self, kind: Kind[T], work: WorkFolder = NOT_KEPT) -> None:
        self.kind = kind
        self.folder = work.path
        self._results: dict[int, T] = {}

    def __contains__(self, step: int) -> bool:
        """Return whether this process or an interrupted run has stored the result of a step."""
        if step in self._results:
            return True
        if self.folder is None:
            return False
        # Rank 0 checks the file and sends the answer to all processes. On NFS, the other processes
        # may see a new file later than rank 0.
        return ranks.on_first(partial(_is_whole, self._file(self.folder, step)))

    def __iter__(self) -> Iterator[T]:
        """Iterate over the results of all steps that this process has written or read."""
        return iter(self._results.values())

    def write(self, step: int, result: T) -> None:
        """Store the result of a step.

        If the steps are the layers that `flap.models.Walk` visits, call this method before `Walk`
        records that the layer is finished. A resumed `Walk` expects the results of all finished
        layers.
        """
        self._results[step] = result
        if self.folder is None or not ranks.is_first():
            return
        file = self._file(self.folder, step)
        with atomic_file(file) as scratch:
            self.kind.write(result, scratch)
        write_text(_checksum_of(file), file_sha256(file))

    def read(self, step: int) -> T:
        """Return the result of a step that this process or an interrupted run has stored."""
        if step not in self._results and self.folder is not None:
            self._results[step] = self.kind.read(self._file(self.folder, step))
        return self._results[step]

    def _file(self, folder: Path, step: int) -> Path:
        return folder / f"{self.kind.name}-{step}"


def results_of_steps(
    notes: Notes[T], do: Callable[[int], T], at_once: Callable[[int], int]
) -> Iterator[T]:
    """Yield the results of steps 0, 1, 2, and so on.

    If the result of a step is not stored in `notes`, the step is done now. At the same time, each
    of the other processes does one of the next steps.

    do: a function that does the step with the given number, and returns the result of the step.
    at_once: a function that returns how many steps, from the given number on, may be done at the
        same time. The function returns 0 if there are no more steps.
    """
    for step in count():
        steps = range(step, step + min(ranks.size(), at_once(step)))
        if not steps:
            return
        if step not in notes:
            results = ranks.each_by_one(partial(do, number) for number in steps)
            for number, result in zip(steps, results, strict=True):
                notes.write(number, result)
        yield notes.read(step)


def notes_are_whole(folder: Path, steps: int) -> bool:
    """Return whether all stored results of the first `steps` steps in a folder are undamaged.

    A result is damaged if its file does not match the checksum, or if its file is missing although
    the file with the checksum exists.
    """
    for checksum in folder.glob(f"*{CHECKSUM}"):
        step = int(checksum.stem.rpartition("-")[2])
        if step < steps and not _is_whole(checksum.with_suffix("")):
            return False
    return True


def _checksum_of(file: Path) -> Path:
    return file.with_name(f"{file.name}{CHECKSUM}")


def _is_whole(file: Path) -> bool:
    """Return whether the file of a result exists and matches its checksum.

    If the file exists but is damaged, a warning is logged.
    """
    if not file.is_file():
        return False
    with suppress(OSError, ValueError):  # the checksum is missing or damaged
        if _checksum_of(file).read_text() == file_sha256(file):
            return True
    log.warning("%s: is damaged, and is computed again", file)
    return False


def working_folder(root: Path, key: Mapping[str, Any]) -> Path:
    """Return the path of the working directory for a key.

    root: the folder of the cache.
    key: everything on which the files in the working directory depend.
    """
    return root / KIND / digest(key)


@contextmanager
def open_working_folder(root: Path, key: Mapping[str, Any], resume: bool) -> Iterator[Path]:
    """Yield the working directory for a key, with the files of an interrupted run if there are any.

    The directory is deleted at the end of the block, unless the block raises an error, for example
    because the disk is full. After an error, the files stay. If the same command is invoked again,
    it continues from these files.

    If another run uses the directory, or if no lock can be created, a temporary directory is
    yielded instead, from which no later run can resume. If a run with a temporary directory is
    killed, its results in the cache and the results of its finished evaluation tasks remain, but
    unfinished stages start again from the beginning.

    root: the folder of the cache.
    key: everything on which the files in the working directory depend.
    resume: whether to use the files of an interrupted run; if false, these files are deleted.

    Raises:
        ValueError: the cache cannot be written to.
    """
    folder = working_folder(root, key)
    _make(folder.parent)
    with file_lock(lock_of(folder), "cache_dir") as state:
        _remove_old(folder.parent)
        if state == "held":
            with _kept_if_interrupted(folder, resume):
                yield folder
        else:
            with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
                yield Path(temporary)


@contextmanager
def _kept_if_interrupted(folder: Path, resume: bool) -> Iterator[None]:
    """Create a working directory, and delete the directory at the end of the block.

    If the block raises an error, the directory is deleted only if it contains no files. The caller
    must hold the lock of the directory.
    """
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    folder.touch()  # `_remove_old` reads the modification time as the time of the last use

    finished = False
    try:
        yield
        finished = True
    finally:
        if finished or not any(path.is_file() for path in folder.rglob("*")):
            # on NFS, files that are still memory-mapped are deleted when the memory maps are closed
            shutil.rmtree(folder, ignore_errors=True)
        else:
            log.info(
                "finished work stays in %s: the same command continues it "
                "(add checkpoint.overwrite=true if its checkpoint exists already); "
                "resume=false starts from the beginning",
                folder,
            )


def _remove_old(parent: Path) -> None:
    """Delete working directories that were not used for `SECONDS_KEPT` seconds."""
    for folder in parent.iterdir():
        with suppress(OSError):  # another process may have just removed the folder
            if folder.is_dir() and time.time() - folder.stat().st_mtime > SECONDS_KEPT:
                remove_unused(folder)


def _make(folder: Path) -> None:
    """Create a folder inside `cache_dir`, and check that files can be written into the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        raise ValueError(
            f"cache_dir={folder.parent}: expected a folder that can be written to "
            f"({error.strerror})"
        ) from error
