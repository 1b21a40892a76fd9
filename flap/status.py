"""What a folder says about its run: status.json, written without torch, so that every failure gets one."""

import json
from pathlib import Path
from typing import Any, Literal

from flap.files import write_text

State = Literal["running", "finished", "failed"]
STATUS = "status.json"
STATUS_SCHEMA = 1


def write_status(folder: Path, state: State, error: str | None = None) -> None:
    """Say how the run stands. A killed run stays "running"; it has no report."""
    folder.mkdir(parents=True, exist_ok=True)
    status = {"schema": STATUS_SCHEMA, "state": state, "error": error}
    write_text(folder / STATUS, json.dumps(status) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """What the folder says: schema, state, error; empty where it says nothing that can be read."""
    try:
        return dict(json.loads((folder / STATUS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def read_state(folder: Path) -> State | None:
    """The state of the run in a folder, or None where there is none."""
    return read_status(folder).get("state")
