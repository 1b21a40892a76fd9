"""The agenda of an evaluation estimates the time that all remaining tasks will take."""

from importlib import import_module
from itertools import count
from types import SimpleNamespace

import pytest

from flap.runtime.agenda import Agenda, Speed, Workload, about, current_agenda


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the clock of the agenda by a clock that advances by ten seconds at every call."""
    times = count(step=10.0)
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(import_module("flap.runtime.agenda"), "time", clock)


def test_what_is_to_come_is_judged_by_what_the_tasks_so_far_have_taken(clock: None) -> None:
    agenda = Agenda()
    agenda.plan({"a: one": Workload(100), "a: two": Workload(300), "b: three": Workload(0, 50)})
    assert agenda.seconds_left() is None  # because no task has been timed yet
    with agenda.doing("a: one"):
        assert agenda.seconds_left() is None
        # Half of the 100 tokens of the first task have taken 20 s. 50 + 300 tokens are left to
        # read, and 50 tokens are left to generate. Generating a token counts as much as reading
        # eight tokens.
        assert agenda.seconds_left(0.5) == pytest.approx(20 / 50 * (50 + 300 + 400))
    # The first task has taken 30 s in total for its 100 tokens.
    assert agenda.seconds_left() == pytest.approx(30 / 100 * 700)
    with agenda.doing("a: two"):
        assert agenda.title == "a, task 2 of 3 (two)"


def test_what_an_earlier_start_has_done_says_nothing_of_the_speed(clock: None) -> None:
    agenda = Agenda()
    agenda.plan(
        {
            "a: one": Workload(100),
            "a: two": Workload(300),
        }
    )
    with agenda.doing("a: one"):
        agenda.resume(0.8)
        assert agenda.seconds_left(0.8) is None
        # Since the run was resumed, it has read 10 tokens in 20 s. 10 + 300 tokens are left.
        left = agenda.seconds_left(0.9)
        assert left == pytest.approx(20 / 10 * 310)

    # Since the run was resumed, it has read the last 20 tokens of the first task in 30 s.
    left = agenda.seconds_left()
    assert left == pytest.approx(30 / 20 * 300)


def test_the_speed_of_the_model_tells_before_anything_is_done() -> None:
    agenda = Agenda()
    agenda.plan({"a: one": Workload(100, 10), "a: two": Workload(300)})
    agenda.speed = Speed(read=0.1, written=2.0)
    assert agenda.seconds_left() == pytest.approx(100 * 0.1 + 10 * 2.0 + 300 * 0.1)


def test_a_task_of_unknown_size_is_taken_for_an_average_one() -> None:
    agenda = Agenda()
    agenda.plan({"a: one": Workload(100), "a: two": Workload(300), "b: own": Workload()})
    assert agenda.left[-1] == Workload(200)


def test_a_task_that_is_known_already_or_fails_is_not_counted(clock: None) -> None:
    agenda = Agenda()
    agenda.plan({name: Workload(100) for name in ("a: one", "a: two", "a: three")})
    agenda.drop("a: one")
    with pytest.raises(RuntimeError), agenda.doing("a: two"):
        assert current_agenda() is agenda
        assert agenda.title == "a, task 1 of 2 (two)"
        raise RuntimeError

    assert current_agenda() is None
    assert agenda.left == [Workload(100)]
    assert agenda.seconds_left() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4, "4 s"), (2400, "40 min"), (6480, "1.8 h"), (40000, "11 h"), (4e6, "1,111 h")],
)
def test_a_duration_has_two_digits(seconds: float, text: str) -> None:
    assert about(seconds) == text
