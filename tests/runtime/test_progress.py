"""A long step says how long it will take, in its bar or in the log."""

import logging
from importlib import import_module
from itertools import count
from types import SimpleNamespace

import pytest

from flap.runtime.progress import progress


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
    clock = count(step=seconds)  # each item takes this many seconds
    monkeypatch.setattr(
        import_module("flap.runtime.progress"),
        "time",
        SimpleNamespace(perf_counter=lambda: next(clock)),
    )
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    with caplog.at_level(logging.INFO, "flap"):
        assert list(progress(range(20), "calibrate")) == list(range(20))
    assert caplog.messages == said
