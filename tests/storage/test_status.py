"""A command that ends with a ValueError or an OSError prints one line, and exits with code 1."""

import errno
from contextlib import suppress
from pathlib import Path

import pytest

from flap.storage.status import State, exit_on_error, read_state, run_folder, write_status


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("ratio=2: expected\na number"), "ratio=2: expected a number"),
        (OSError(errno.ENOSPC, "No space left"), "OSError: [Errno 28] No space left"),
    ],
    ids=["bad input", "full disk"],
)
def test_a_command_ends_with_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped, exit_on_error():
        raise error
    assert stopped.value.code == 1
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), exit_on_error():
        raise KeyError("bug")


@pytest.mark.parametrize(
    ("before", "after"),
    [("running", "interrupted"), ("finished", "finished"), ("failed", "failed"), (None, None)],
)
def test_ctrl_c_is_noted_in_the_folder_of_a_run_that_has_begun(
    before: State | None, after: State | None, tmp_path: Path
) -> None:
    with suppress(KeyboardInterrupt), run_folder(tmp_path):
        if before is not None:
            write_status(tmp_path, before)
        raise KeyboardInterrupt
    assert read_state(tmp_path) == after
