"""The status of a run, in status.json of its folder. It needs no torch, so that early failures are recorded too."""

import json
from pathlib import Path
from typing import Any, Literal

from flap.storage.files import write_text

State = Literal["running", "finished", "failed"]
STATUS = "status.json"
STATUS_SCHEMA = 1


def write_status(folder: Path, state: State, error: str | None = None) -> None:
    """Write the state of a run into its folder. A killed run stays "running" and has no report."""
    folder.mkdir(parents=True, exist_ok=True)
    status = {"schema": STATUS_SCHEMA, "state": state, "error": error}
    write_text(folder / STATUS, json.dumps(status) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json (schema, state, error); empty if it is missing or cannot be read."""
    try:
        return dict(json.loads((folder / STATUS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def read_state(folder: Path) -> State | None:
    """Return the state of the run in a folder, or None if there is no status."""
    return read_status(folder).get("state")
