"""The working directory of an interrupted run stays, and a later run reads the results in it."""

import os
from pathlib import Path

import pytest

from flap.runtime import ranks
from flap.storage import Notes, WorkFolder, as_json, results_of_steps
from flap.storage.locks import file_lock, lock_of
from flap.storage.work_folder import (
    SECONDS_KEPT,
    notes_are_whole,
    open_working_folder,
    working_folder,
)
from tests.helpers.ranks import in_ranks

NUMBERS = as_json("numbers")
KEY = {"of": 1}
OTHER_KEY = {"of": 2}


def interrupted(root: Path, error: BaseException, file: str | None = None) -> Path:
    """Write a file to a run's working directory, let the run fail, and return the directory."""
    with pytest.raises(type(error)), open_working_folder(root, KEY, resume=True) as folder:
        if file is not None:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("hours")
        raise error
    return folder


@pytest.mark.parametrize(
    "error", [ValueError("checkpoint.dir: not empty"), KeyboardInterrupt()], ids=repr
)
def test_whatever_ends_a_run_its_work_stays(error: BaseException, tmp_path: Path) -> None:
    interrupted(tmp_path, error, "calibrate/journal.json")
    with open_working_folder(tmp_path, KEY, resume=True) as folder:
        assert (folder / "calibrate" / "journal.json").read_text() == "hours"
    with open_working_folder(tmp_path, KEY, resume=True) as folder:
        assert not (folder / "calibrate").exists()


def test_without_resume_the_work_of_an_earlier_run_is_deleted(tmp_path: Path) -> None:
    interrupted(tmp_path, KeyboardInterrupt(), "journal.json")
    with open_working_folder(tmp_path, KEY, resume=False) as folder:
        assert not list(folder.iterdir())


def test_a_run_that_has_computed_nothing_leaves_nothing(tmp_path: Path) -> None:
    assert not interrupted(tmp_path, ValueError("bad input")).exists()


def make_old(folder: Path) -> None:
    """Set the time of the last use of a folder so far back that the folder may be deleted."""
    long_ago = folder.stat().st_mtime - SECONDS_KEPT - 1
    os.utime(folder, (long_ago, long_ago))


def test_work_that_was_not_used_for_long_is_deleted(tmp_path: Path) -> None:
    left = interrupted(tmp_path, ValueError("late"), "work")
    with open_working_folder(tmp_path, OTHER_KEY, resume=True):
        assert left.is_dir()

    make_old(left)
    with open_working_folder(tmp_path, OTHER_KEY, resume=True):
        assert not left.exists()


def test_old_work_stays_while_its_run_goes_on(tmp_path: Path) -> None:
    left = interrupted(tmp_path, ValueError("late"), "work")
    make_old(left)
    with (
        file_lock(lock_of(left), "cache_dir"),
        open_working_folder(tmp_path, OTHER_KEY, resume=True),
    ):
        assert left.is_dir()  # kept, because a run holds the lock of this folder
    with open_working_folder(tmp_path, KEY, resume=True) as folder:
        assert (folder / "work").exists()  # the old folder was not deleted, so its run can continue


def test_another_run_of_the_same_work_has_a_folder_of_its_own(tmp_path: Path) -> None:
    with (
        open_working_folder(tmp_path, KEY, resume=True) as first,
        open_working_folder(tmp_path, KEY, resume=True) as second,
    ):
        assert first == working_folder(tmp_path, KEY)
        assert second != first
    assert not first.exists()
    assert not second.exists()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_run_works_in_a_folder_of_its_own(tmp_path: Path) -> None:
    with open_working_folder(tmp_path, KEY, resume=True) as folder:
        assert folder.is_dir()
        assert folder != working_folder(tmp_path, KEY)
    assert not folder.exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a folder with the stored results of three steps."""
    notes = Notes(NUMBERS, WorkFolder(tmp_path / "work"))
    for step in range(3):
        notes.write(step, [step, 10 * step])
    return tmp_path / "work"


def later(folder: Path) -> Notes[list[int]]:
    return Notes(NUMBERS, WorkFolder(folder))


def test_a_later_run_reads_what_was_noted(folder: Path) -> None:
    notes = later(folder)
    assert [step in notes for step in range(4)] == [True, True, True, False]
    assert notes.read(2) == [2, 20]
    assert notes_are_whole(folder, steps=3)


@pytest.mark.parametrize("damaged", ["numbers-1", "numbers-1.sha256"])
@pytest.mark.parametrize("content", [b"", b"[1, 11]", b"\xff"], ids=["empty", "other", "no text"])
def test_a_damaged_note_counts_as_missing(
    damaged: str, content: bytes, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / damaged).write_bytes(content)
    notes = later(folder)
    assert [step in notes for step in range(3)] == [True, False, True]
    assert f"{folder / 'numbers-1'}: is damaged" in caplog.text
    assert not notes_are_whole(folder, steps=2)
    # With steps=1, only the first step is checked, and the result of this step is not damaged.
    assert notes_are_whole(folder, steps=1)

    notes.write(1, [1, 12])
    assert 1 in later(folder)
    assert later(folder).read(1) == [1, 12]
    assert notes_are_whole(folder, steps=3)


def test_notes_without_a_folder_are_kept_in_memory() -> None:
    notes = Notes[int](NUMBERS)
    notes.write(0, 7)
    assert [step in notes for step in range(2)] == [True, False]
    assert notes.read(0) == 7


def do_steps(folder: Path, number: int) -> list[int]:
    """Get the results of steps 0 to number - 1, and return the steps that had to be done.

    A step is not done if an earlier process has stored its result in `folder`.
    """
    done: list[int] = []

    def do(step: int) -> list[int]:
        done.append(step)
        return [step, 10 * step]

    results = results_of_steps(later(folder), do, lambda step: number - step)
    assert list(results) == [[step, 10 * step] for step in range(number)]
    return done


def test_a_step_that_is_noted_is_not_done_again(folder: Path) -> None:
    assert do_steps(folder, 5) == [3, 4]
    assert do_steps(folder, 5) == []


def do_steps_together(folder: Path) -> None:
    assert do_steps(folder, 8) == [[3, 6], [4, 7], [5]][ranks.rank()]


def test_each_process_does_one_of_the_next_steps(folder: Path) -> None:
    assert in_ranks(3, do_steps_together, folder) == [0, 0, 0]


def test_steps_end_when_their_results_are_enough() -> None:
    notes = Notes[int](NUMBERS)
    results = results_of_steps(notes, abs, lambda _: 15 - sum(notes))
    assert list(results) == [0, 1, 2, 3, 4, 5]
