"""`Memory` looks up the stored result of a stage of a run, or computes and stores the result.

The label of a result says how long the stage took.
"""

import time
from pathlib import Path

import pytest

from flap.runs.memory import Memory, seconds_by_stage
from flap.storage import Cache, Label, Store, as_json

KEY = {"of": 1}


@pytest.fixture
def store(tmp_path: Path) -> Store[int]:
    return Cache(tmp_path).of(as_json("numbers"))


def test_a_stage_inside_another_one_is_timed_by_itself(store: Store[int]) -> None:
    memory = Memory()

    def inner() -> int:
        time.sleep(0.05)
        return 1

    def outer() -> int:
        return 1 + memory.remember("inner", KEY, inner, [store]).value

    start = time.perf_counter()
    artefact = memory.remember("outer", {}, outer, [])
    passed = time.perf_counter() - start
    [inside] = artefact.label.inputs
    assert artefact.value == 2
    assert (inside.stage, inside.cache) == ("inner", "miss")
    assert inside.seconds >= 0.05
    assert inside.seconds + artefact.label.seconds <= passed
    seconds = seconds_by_stage([artefact.label])
    assert seconds == {
        "inner": inside.seconds,
        "outer": artefact.label.seconds,
        "total": inside.seconds + artefact.label.seconds,
    }


def test_what_is_found_keeps_the_seconds_that_it_took(store: Store[int]) -> None:
    made = Memory().remember("stage", KEY, lambda: 1, [store])
    found = Memory().remember("stage", KEY, lambda: pytest.fail("computed again"), [store])
    assert found.value == made.value
    assert found.label.seconds == made.label.seconds
    assert (made.label.cache, found.label.cache) == ("miss", "hit")


def test_a_store_gets_what_another_one_has(tmp_path: Path) -> None:
    """If only one of two stores has a result, the other store gets a copy.

    For example, the measured results of the dense model are copied from the cache to the run's
    folder.
    """
    mine, shared = (Cache(tmp_path / name).of(as_json("numbers")) for name in ("mine", "shared"))
    Memory().remember("stage", KEY, lambda: 1, [shared])
    Memory().remember("stage", KEY, lambda: pytest.fail("computed again"), [mine, shared])
    assert mine.find(KEY) is not None


def test_an_error_inside_a_stage_leaves_no_open_stage(store: Store[int]) -> None:
    memory = Memory()
    with pytest.raises(ZeroDivisionError):
        memory.remember("fails", KEY, lambda: 1 // 0, [store])
    with memory.timed("later"):
        pass
    assert [label.stage for label in memory.labels] == ["later"]


def test_a_label_is_read_as_it_was_written() -> None:
    label = Label("outer", 1.5, "miss", (Label("inner", 0.5, "hit"),))
    assert Label.from_dict(label.to_dict()) == label
    assert [one.stage for one in label.walk()] == ["inner", "outer"]
