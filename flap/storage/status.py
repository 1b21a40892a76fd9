"""Lock a run's folder, and read and write the status of the run in status.json.

This module imports no torch, because a run may fail before torch is imported.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from flap.config.messages import one_line
from flap.runtime.ranks import LostError
from flap.storage.atomic_files import write_text
from flap.storage.json_files import read_json
from flap.storage.locks import file_lock
from flap.storage.new_paths import remove_paths

State = Literal["running", "interrupted", "finished", "failed"]
STATUS = "status.json"
LOCK = ".lock"
LOG = "flap.log"
SETTINGS = ".hydra"  # Hydra's folder with the composed config
FIRST_FILES = (LOCK, LOG, SETTINGS)  # files that exist in a run's folder before the run begins
# If there is not enough memory, the type or the message of torch's error contains one of these
# texts.
NO_MEMORY = ("OutOfMemory", "can't allocate memory")
LESS_MEMORY = "smaller batches take less; dry_run=true says what each model.placement takes"


@contextmanager
def run_folder(folder: Path, created: Sequence[Path] | None = None) -> Iterator[None]:
    """Lock the folder of a run for the duration of the `with` block.

    If the block raises an error, the error is written to status.json. There are two exceptions: the
    folder already contains a finished run, or the error is a LostError, which means that another
    process of this run has ended or does not answer. If Ctrl-C ends the block while the state of
    the run is "running", the state becomes "interrupted".

    created: the paths that were created for this run. If the block raises a ValueError before the
        folder has a status.json, the run is refused: the paths are removed, and no status is
        written. If `created` is None, nothing is removed, and the error is written to status.json.

    Raises:
        ValueError: another run is working in the folder.
    """
    new = created is not None and read_state(folder) is None
    with file_lock(folder / LOCK, "hydra.run.dir") as lock:
        if lock == "busy":
            raise ValueError(
                f"hydra.run.dir={folder}: another run is working there; name another folder "
                "(hydra.run.dir, hydra.sweep.dir), or wait"
            )
        try:
            yield
        except KeyboardInterrupt:
            _note_interruption(folder)
            raise
        except LostError:
            raise  # the process that failed first has already written the status
        except Exception as error:
            refused = isinstance(error, ValueError) and read_state(folder) is None
            if new and refused:
                remove_paths(created or (), whole=folder / SETTINGS)
            else:
                note_failure(folder, reason(error))
            raise


def reason(error: Exception) -> str:
    """Return a line without secrets that says why a run has failed.

    For invalid input (a ValueError), the line is the message of the error. For other errors, the
    line begins with the type of the error. If there was not enough memory, the line ends with
    advice on how to use less memory.
    """
    if isinstance(error, ValueError):
        return one_line(error)

    line = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, MemoryError) or any(text in line for text in NO_MEMORY):
        return f"{line}; {LESS_MEMORY}"
    return line


@contextmanager
def exit_on_error() -> Iterator[None]:
    """If the `with` block raises a ValueError or an OSError, print the error and exit with code 1.

    The error is printed in one line without secrets. Other errors propagate.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def note_failure(folder: Path, line: str) -> None:
    """Write to status.json that a run has failed, and why, unless the folder has a finished run.

    line: the reason, in one line.
    """
    with suppress(OSError):  # the run may have failed because the disk is full
        if read_state(folder) != "finished":
            write_status(folder, "failed", line)


def _note_interruption(folder: Path) -> None:
    """Write the state "interrupted" to status.json, if the state of the run is "running"."""
    with suppress(OSError):  # the disk may be full
        if read_state(folder) == "running":
            write_status(folder, "interrupted")


def write_status(folder: Path, state: State, error: str | None = None) -> None:
    """Write the state of a run to status.json in the folder of the run.

    If a run is killed, it cannot write another state, so its state stays "running".
    """
    status = {"schema": 1, "state": state, "error": error}
    write_text(folder / STATUS, json.dumps(status) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json, which has the keys "schema", "state" and "error".

    Return an empty dict if the file is missing or damaged.
    """
    return read_json(folder / STATUS)


def read_state(folder: Path) -> State | None:
    """Return the state of the run in a folder, or None if status.json is missing or damaged."""
    return read_status(folder).get("state")
