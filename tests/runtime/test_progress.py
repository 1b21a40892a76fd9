"""In a terminal, a long stage shows its remaining time in a progress bar.

Without a terminal, for example if the output goes to a file, the stage prints one line a minute.
"""

import logging
from importlib import import_module
from itertools import count
from types import SimpleNamespace

import pytest

from flap.config.messages import ConsoleFilter
from flap.runtime.agenda import Agenda, Workload
from flap.runtime.progress import progress, showing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the clock of progress bars, so that each item takes 25 seconds."""
    times = count(step=25.0)
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(import_module("flap.runtime.progress"), "time", clock)


LINES = [
    "calibrate: 15 %, 0:07:05 left",
    "calibrate: 30 %, 0:05:50 left",
    "calibrate: 45 %, 0:04:35 left",
    "calibrate: 60 %, 0:03:20 left",
    "calibrate: 75 %, 0:02:05 left",
    "calibrate: 90 %, 0:00:50 left",
]


@pytest.mark.parametrize("in_terminal", [False, True], ids=["redirected", "in a terminal"])
def test_there_is_a_line_a_minute(
    in_terminal: bool,
    clock: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1" if in_terminal else "")
    with caplog.at_level(logging.INFO, "flap"):
        assert list(progress(range(20), "calibrate")) == list(range(20))
    assert caplog.messages == LINES
    console = ConsoleFilter()
    # In a terminal, the console shows the bar, and the lines are only in the log file.
    assert {console.filter(record) for record in caplog.records} == {not in_terminal}
    assert bool(capsys.readouterr().err) == in_terminal


def test_a_line_of_a_task_tells_of_all_tasks(
    clock: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = count(step=100.0)
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(import_module("flap.runtime.agenda"), "time", clock)
    agenda = Agenda()
    agenda.plan({f"zero_shot: {name}": Workload(1000) for name in ("boolq", "piqa")})
    with caplog.at_level(logging.INFO, "flap"), agenda.doing("zero_shot: boolq"):
        list(progress(range(4), "boolq"))
    # By the clock of the agenda, three quarters of the first task have taken 100 s. One and a
    # quarter tasks are left, so they take about 167 s.
    assert caplog.messages == [
        "zero_shot, task 1 of 2 (boolq): 75 %, 0:00:25 left; all tasks about 3 min"
    ]


def test_what_an_interrupted_run_has_left_tells_nothing_of_the_speed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter([0.0, 0.5, 61.0])
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(import_module("flap.runtime.progress"), "time", clock)
    with caplog.at_level(logging.INFO, "flap"), showing("write own text", 1000) as reach:
        reach(900)
        reach(910)
    assert caplog.messages == ["write own text: 91 %, 0:09:04 left"]


def test_all_tasks_are_judged_by_what_this_start_has_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter([0.0, 0.5, 61.0])
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(import_module("flap.runtime.progress"), "time", clock)
    of_agenda = iter([0.0, 60.0, 61.0])
    clock = SimpleNamespace(perf_counter=lambda: next(of_agenda))
    monkeypatch.setattr(import_module("flap.runtime.agenda"), "time", clock)
    agenda = Agenda()
    agenda.plan({f"generation: {name}": Workload(1000) for name in ("triviaqa", "nq_open")})
    task = agenda.doing("generation: triviaqa")
    with caplog.at_level(logging.INFO, "flap"), task, showing("triviaqa", 1000) as reach:
        reach(900)
        reach(950)
    # Since the run was resumed, it has read 50 of the 1,000 tokens of the first task in 60 s, and
    # 1,050 tokens of both tasks are left.
    [line] = caplog.messages
    assert line.endswith("95 %, 0:01:00 left; all tasks about 21 min")
