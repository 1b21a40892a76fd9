"""If the reader of the output ends, as `head` in `flap … | head -1`, flap ends without an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flap.config.output import RedactedStream


def test_text_is_discarded_after_the_reader_has_ended() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        stream = RedactedStream(pipe)
        stream.write("one\n")
        stream.flush()
        assert os.read(reading, 100) == b"one\n"
        os.close(reading)
        for _ in range(2):
            assert stream.write("two\n") == 4
            stream.writelines(["three\n", "four\n"])
            stream.flush()


@pytest.mark.parametrize(
    "argument", ["--help", pytest.param("dry_run=true", marks=pytest.mark.long)]
)
def test_a_command_succeeds_without_a_reader(argument: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flap", argument]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    process.stdout.close()
    _, printed = process.communicate(timeout=300)
    assert (process.returncode, printed) == (0, "")
