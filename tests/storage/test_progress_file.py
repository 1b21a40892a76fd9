"""The file with a run's progress: there while it runs, and never in its way."""

import re
from pathlib import Path

import pytest

from flap.storage.progress import progress
from flap.storage.progress_file import PROGRESS, progress_file, read_progress


def test_the_step_is_there_while_a_run_lasts(tmp_path: Path) -> None:
    with progress_file(tmp_path):
        assert read_progress(tmp_path) == ""
        steps = progress(range(3), "calibrate")
        assert [next(steps), next(steps)] == [0, 1]  # the second one ends the first
        assert re.fullmatch(r"calibrate 1 of 3 at \d\d:\d\d:\d\d", read_progress(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_run_passes_and_the_file_goes(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), progress_file(tmp_path):
        raise OSError("disk")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    with progress_file(tmp_path / "missing"):
        assert list(progress(range(2), "calibrate")) == [0, 1]
    (tmp_path / PROGRESS).write_text("torn {")
    assert read_progress(tmp_path) == ""
