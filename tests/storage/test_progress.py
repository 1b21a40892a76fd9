"""A long step says how long it will take, in its bar or the log; the file with a run's progress is never in its way."""

import logging
import re
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from flap.storage.progress import PROGRESS, progress, progress_file, read_progress


@pytest.mark.parametrize(
    ("seconds", "terminal", "said"),
    [(4, False, ["calibrate: about 0:01:16 to go"]), (0.5, False, []), (4, True, [])],
    ids=["long", "short", "in a terminal"],
)
def test_outside_a_terminal_the_log_says_how_long_a_step_takes(
    seconds: float,
    terminal: bool,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = count(step=seconds)  # each item takes so long
    monkeypatch.setattr(
        import_module("flap.storage.progress"), "time", SimpleNamespace(perf_counter=lambda: next(clock))
    )
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    with caplog.at_level(logging.INFO, "flap"):
        assert list(progress(range(20), "calibrate")) == list(range(20))
    assert caplog.messages == said


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
