"""Run a command line while one of its file operations fails, or while the process is killed at it.

SQLite is tested in the same way.

An operation is an opening for writing, a write, a rename, a sync, a new folder, a reservation of
room or a mapping, of a path below a run's folder. Deleting does not count: it needs no room, and if
it fails, there is nothing to do.
"""

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from tests.helpers.forked import command_line

# full: ENOSPC at this operation and at each later one that takes room
KINDS = ("ENOSPC", "EIO", "full", "killed")
TAKING_ROOM = ("open", "write", "mkdir", "reserve", "save_file")


@dataclass(frozen=True)
class Fault:
    """A fault at the number-th operation of a run, from 1. With 0, operations are only counted."""

    number: int = 0
    kind: str = "ENOSPC"


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code, its output on the console, and its operations."""

    code: int
    said: str
    operations: list[str]  # as "rename run/checkpoint"


def faulted(folder: Path, arguments: list[str], fault: Fault) -> Outcome:
    """Run the command line in `folder`, in a separate process, with a fault."""
    with TemporaryDirectory() as beside:
        journal = Path(beside) / "operations"
        done: CompletedProcess[str] = command_line(
            folder, *arguments, before=partial(install, str(folder), str(journal), fault)
        )
        return Outcome(done.returncode, done.stderr, journal.read_text().splitlines())


def install(folder: str, journal: str, fault: Fault) -> None:
    """Wrap the file operations of this process.

    journal: the file that gets a line for each operation, before it is done.
    """
    faults = Faults(folder, os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fault)
    builtins.open = io.open = faults.opening(io.open)  # type: ignore[assignment]
    os.open = faults.counted("os.open", os.open)
    for name in ("rename", "replace", "mkdir"):
        setattr(os, name, faults.counted(name.replace("replace", "rename"), getattr(os, name)))
    # nothing is synced: a process that ends loses nothing, and disks are slow
    os.fsync = faults.counted("fsync", lambda descriptor: None)
    os.posix_fallocate = faults.counted("reserve", os.posix_fallocate)
    torch.from_file = faults.counted("map", torch.from_file)
    save_file = safetensors.torch.save_file
    counted = faults.counted(
        "save_file", save_file, place=1, halfway=lambda path: Path(path).write_bytes(b"half")
    )
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is save_file:  # each module that imports the function has a name for it
                setattr(module, name, counted)


class Faults:
    """The count of operations below a folder, and the fault that comes when it is reached."""

    def __init__(self, folder: str, journal: int, fault: Fault) -> None:
        self.folder = Path(folder).resolve()
        self.journal = journal
        self.fault = fault
        self.count = 0
        self.halfway = False

    def meet(self, operation: str, place: Any, halfway: Callable[[], Any] = str) -> None:
        """Count an operation, and let the fault happen if it is its turn.

        halfway: writes the part of the content that a torn write leaves.
        """
        if self.halfway:  # operations inside a torn write do not count
            return
        self.count += 1
        os.write(self.journal, f"{operation} {os.path.relpath(place, self.folder)}\n".encode())
        due = self.count == self.fault.number
        if due or (
            self.fault.kind == "full"
            and 0 < self.fault.number < self.count
            and operation in TAKING_ROOM
        ):
            self.halfway = True
            halfway()
            self.halfway = False
            if self.fault.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            number = errno.EIO if self.fault.kind == "EIO" else errno.ENOSPC
            if operation == "save_file":  # the message of safetensors
                raise SafetensorError(
                    f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
                )
            raise OSError(number, os.strerror(number), str(place))

    def below(self, place: Any) -> str | None:
        """Return the path of a file or a descriptor below the folder; None for any other."""
        path = Path(
            f"/proc/self/fd/{place}" if isinstance(place, int) else os.fsdecode(place)
        ).resolve()
        return str(path) if self.folder in path.parents else None

    def counted(
        self,
        operation: str,
        original: Callable[..., Any],
        place: int = 0,
        halfway: Callable[[str], Any] = str,
    ) -> Callable[..., Any]:
        """Return a function that counts its calls. Argument `place` is a path or a descriptor."""

        def wrapped(*given: Any, **options: Any) -> Any:
            path = None if "dir_fd" in options else self.below(given[place])
            if path is not None and not Path(path).is_dir() | (operation == "mkdir"):
                self.meet(operation, path, partial(halfway, path))
            return original(*given, **options)

        return wrapped

    def opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return an `open` that counts if it is for writing.

        Each write to the file counts, too, and can be torn.
        """

        def wrapped(file: Any, mode: str = "r", *given: Any, **options: Any) -> Any:
            path = (
                None if isinstance(file, int) or not set(mode) & set("wax+") else self.below(file)
            )
            if path is None:
                return original(file, mode, *given, **options)
            self.meet("open", path)
            opened = original(file, mode, *given, **options)
            write = opened.write

            def half(content: Any) -> None:
                write(content[: len(content) // 2])
                opened.flush()

            def written(content: Any) -> Any:
                opened.write = write  # one operation for all writes to this opened file
                self.meet("write", path, partial(half, content))
                return write(content)

            opened.write = written
            return opened

        return wrapped
