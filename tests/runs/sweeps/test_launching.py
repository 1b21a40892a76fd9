"""A sweep prints a message for each failed cell (one run of the sweep)."""

import os
import pickle
from pathlib import Path

import pytest

from flap.runs.sweeps.callbacks import RunFailedError, failure_lines, failures
from flap.storage import write_status
from flap.storage.status import STATUS


def test_a_failure_of_an_earlier_command_is_not_told_again(tmp_path: Path) -> None:
    for name, state in (("0_a", "failed"), ("1_b", "failed"), ("2_c", "finished")):
        write_status(tmp_path / name, state, f"ratio={name}")  # type: ignore[arg-type]
    os.utime(tmp_path / "0_a" / STATUS, (1000, 1000))
    assert failures(tmp_path, since=2000) == [f"failed: {tmp_path / '1_b'}: ratio=1_b"]
    assert len(failures(tmp_path)) == 2


def test_each_refused_cell_has_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of failures has a line for each refused cell, although no status file has its error.

    flap refuses a cell if its folder contains another run. The status file in this folder describes
    the other run, and must not change. So the sweep takes the error message of the refused cell
    from the exception, which may have been raised in another process.
    """
    monkeypatch.setattr(RunFailedError, "lines", [])
    write_status(tmp_path / "0_a", "failed", "ratio=2")
    first, *_ = [
        RunFailedError(str(tmp_path), line) for line in ("ratio=2", "1_b: holds another run")
    ]
    other = pickle.dumps(RunFailedError(str(tmp_path), "2_c: holds another run"))
    RunFailedError.lines.pop()
    pickle.loads(other)
    refused = ["failed: 1_b: holds another run", "failed: 2_c: holds another run"]
    assert failure_lines(first, 0) == [f"failed: {tmp_path / '0_a'}: ratio=2", *refused]
