"""A command that ends with a ValueError or an OSError prints one line, and exits with code 1."""

import errno

import pytest

from flap.storage.status import exit_on_error


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
