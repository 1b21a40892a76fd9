"""Run a command line, and let one file operation fail, or kill the process at this operation.

The tests of SQLite inject faults in the same way.

The following operations count as file operations, if their path is below the folder of a run:
opening a file for writing, writing, renaming, syncing, creating a folder, reserving disk space, and
mapping a file into memory. Deleting a file does not count: deleting needs no disk space, and flap
can do nothing if a deletion fails.
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

# ENOSPC and EIO: only the chosen operation fails, with this error. full: the chosen operation and
# every later operation that needs disk space fail with ENOSPC. killed: the process is killed at the
# chosen operation.
KINDS = ("ENOSPC", "EIO", "full", "killed")
TAKING_ROOM = ("open", "write", "mkdir", "reserve", "save_file")


@dataclass(frozen=True)
class Fault:
    """A fault at file operation `number`, counted from 1. If `number` is 0, there is no fault."""

    number: int = 0
    kind: str = "ENOSPC"


@dataclass(frozen=True)
class Outcome:
    """The exit code, the console output and the file operations of a process that has ended."""

    code: int
    said: str
    operations: list[str]  # file operations of the process, such as "rename run/checkpoint"


def faulted(folder: Path, arguments: list[str], fault: Fault) -> Outcome:
    """Run the command line in `folder`, in a separate process, with one fault."""
    with TemporaryDirectory() as beside:
        journal = Path(beside) / "operations"
        done: CompletedProcess[str] = command_line(
            folder, *arguments, before=partial(install, str(folder), str(journal), fault)
        )
        return Outcome(done.returncode, done.stderr, journal.read_text().splitlines())


def install(folder: str, journal: str, fault: Fault) -> None:
    """Wrap the file operations of this process, to count them and cause the fault at one of them.

    journal: the file to which a line is added before each operation.
    """
    faults = Faults(folder, os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fault)
    builtins.open = io.open = faults.opening(io.open)  # type: ignore[assignment]
    os.open = faults.counted("os.open", os.open)
    for name in ("rename", "replace", "mkdir"):
        setattr(os, name, faults.counted(name.replace("replace", "rename"), getattr(os, name)))
    # Skip syncs, because they are slow. Data that was not synced survives the kill of a process,
    # and is lost only if the machine fails.
    os.fsync = faults.counted("fsync", lambda descriptor: None)
    os.posix_fallocate = faults.counted("reserve", os.posix_fallocate)
    torch.from_file = faults.counted("map", torch.from_file)
    save_file = safetensors.torch.save_file
    counted = faults.counted(
        "save_file", save_file, place=1, halfway=lambda path: Path(path).write_bytes(b"half")
    )
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is save_file:  # replace the function in each module that has imported it
                setattr(module, name, counted)


class Faults:
    """Count the operations on files below a folder, and cause a fault at one of them."""

    def __init__(self, folder: str, journal: int, fault: Fault) -> None:
        self.folder = Path(folder).resolve()
        self.journal = journal
        self.fault = fault
        self.count = 0
        self.halfway = False

    def meet(self, operation: str, place: Any, halfway: Callable[[], Any] = str) -> None:
        """Count an operation, and cause the fault if the fault belongs to this operation.

        halfway: a function that writes a part of the content, as an interrupted write does.
        """
        if self.halfway:  # do not count operations that are a part of an interrupted write
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
            if operation == "save_file":  # raise the same error as safetensors
                raise SafetensorError(
                    f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
                )
            raise OSError(number, os.strerror(number), str(place))

    def below(self, place: Any) -> str | None:
        """Return the path of a file or descriptor, or None if it is not below `self.folder`."""
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
        """Wrap a function so that its calls count as operations.

        place: the index of the argument that is a path or a descriptor.
        """

        def wrapped(*given: Any, **options: Any) -> Any:
            path = None if "dir_fd" in options else self.below(given[place])
            if path is not None and not Path(path).is_dir() | (operation == "mkdir"):
                self.meet(operation, path, partial(halfway, path))
            return original(*given, **options)

        return wrapped

    def opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the function `open` so that each opening for writing counts as an operation.

        All writes to the opened file together count as one further operation. A fault in this
        operation can interrupt the first write halfway.
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
                opened.write = write  # further writes to this file do not count
                self.meet("write", path, partial(half, content))
                return write(content)

            opened.write = written
            return opened

        return wrapped
