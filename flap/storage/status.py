"""A run's folder: one run at a time, and its status in status.json. It needs no torch: early failures count too."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from flap.config.messages import one_line
from flap.storage.atomic_files import write_text
from flap.storage.json_files import read_json
from flap.storage.locks import file_lock
from flap.storage.new_paths import remove_paths
from flap.storage.ranks import LostError

State = Literal["running", "finished", "failed"]
STATUS = "status.json"
LOCK = ".lock"
LOG = "flap.log"
SETTINGS = ".hydra"  # the folder with the composed config, as Hydra names it
FIRST_FILES = (LOCK, LOG, SETTINGS)  # of a run's folder, before the run begins
LESS_MEMORY = "smaller batches take less; dry_run=true says what each model.placement takes"


@contextmanager
def run_folder(folder: Path, created: Sequence[Path] | None = None) -> Iterator[None]:
    """Hold the folder of a run for as long as the block lasts. An error of it is noted, unless a finished run is there.

    created: what exists for the sake of this run. It is removed, and nothing is noted, if the run is
    refused before it begins, and the folder holds no other run. None: nothing is removed.

    Raises:
        ValueError: another run is working in the folder.
    """
    new = created is not None and read_state(folder) is None
    with file_lock(folder / LOCK, "hydra.run.dir") as lock:
        if lock == "busy":
            raise ValueError(
                f"hydra.run.dir={folder}: another run is working there; name another folder (hydra.run.dir, "
                "hydra.sweep.dir), or wait"
            )
        try:
            yield
        except LostError:
            raise  # the one that has failed has noted why
        except Exception as error:
            refused = isinstance(error, ValueError) and read_state(folder) is None
            if new and refused:
                remove_paths(created or (), whole=folder / SETTINGS)
            else:
                note_failure(folder, reason(error))
            raise


def reason(error: Exception) -> str:
    """Return why a run failed, without secrets.

    This is the error's text. Unless the input was bad, the error's type comes first; out of memory, what to do follows.
    """
    if isinstance(error, ValueError):
        return one_line(error)
    line = f"{type(error).__name__}: {one_line(error)}"
    no_memory = isinstance(error, MemoryError) or any(
        text in line for text in ("OutOfMemory", "can't allocate memory")
    )
    return f"{line}; {LESS_MEMORY}" if no_memory else line


def note_failure(folder: Path, line: str) -> None:
    """Write into a run's folder why it failed, unless a finished run is there."""
    with suppress(OSError):  # a full disk: the run failed because of it, or in spite of it
        if read_state(folder) != "finished":
            write_status(folder, "failed", line)


def write_status(folder: Path, state: State, error: str | None = None) -> None:
    """Write the state of a run into its folder. A killed run stays "running" and has no report."""
    status = {"schema": 1, "state": state, "error": error}
    write_text(folder / STATUS, json.dumps(status) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json (schema, state, error); empty if it is missing or cannot be read."""
    return read_json(folder / STATUS)


def read_state(folder: Path) -> State | None:
    """Return the state of the run in a folder, or None if there is no status."""
    return read_status(folder).get("state")
