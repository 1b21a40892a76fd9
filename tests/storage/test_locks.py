"""Locks: held by one process at a time, and done without where there are none."""

import errno
import fcntl
import logging
import os
from pathlib import Path

import pytest

from flap.runs.sweeps.launching import claim_gpu
from flap.storage import Cache, as_json
from flap.storage.locks import file_lock, lock_of
from flap.storage.work_folder import SECONDS_KEPT, open_working_folder, working_folder
from tests.helpers.remembered import remembered


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS], ids=["NFS", "Lustre"])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks, as some network file systems."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    with (
        file_lock(tmp_path / "lock", "cache_dir") as first,
        file_lock(tmp_path / "lock", "cache_dir") as second,
    ):
        assert (first, second) == ("held", "busy")
    with file_lock(tmp_path / "lock", "cache_dir") as third:
        assert third == "held"


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_cache_works_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Cache(tmp_path).of(as_json("numbers"))
    with caplog.at_level(logging.WARNING):
        assert [remembered(store, {"of": n}, lambda n=n: n) for n in (1, 2, 1)] == [
            (1, "miss"),
            (2, "miss"),
            (1, "hit"),
        ]
    [line] = caplog.messages
    assert line.startswith(f"cache_dir: no lock in {tmp_path / 'numbers'} ([Errno ")
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_run_works_in_a_folder_of_its_own(tmp_path: Path) -> None:
    with open_working_folder(tmp_path, {"of": 1}, resume=True) as folder:
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_processes_that_share_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match=r"^hydra\.sweep\.dir=\S+: no locks there, .*one process$"):
        claim_gpu(tmp_path)


def fail_in_workspace(root: Path, error: BaseException, *parts: str) -> Path:
    """A run that has written these files into its working folder when it fails."""
    with pytest.raises(type(error)), open_working_folder(root, {"of": 1}, resume=True) as folder:
        for part in parts:
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).write_text("hours")
        raise error
    return folder


@pytest.mark.parametrize(
    "error", [ValueError("checkpoint.dir: not empty"), KeyboardInterrupt()], ids=repr
)
def test_whatever_ends_a_run_its_work_stays(error: BaseException, tmp_path: Path) -> None:
    fail_in_workspace(tmp_path, error, "calibrate/journal.json")
    with open_working_folder(tmp_path, {"of": 1}, resume=True) as folder:
        assert (folder / "calibrate" / "journal.json").read_text() == "hours"
    with open_working_folder(tmp_path, {"of": 1}, resume=True) as folder:
        assert not (folder / "calibrate").exists()


def test_a_run_that_has_computed_nothing_leaves_nothing(tmp_path: Path) -> None:
    assert not fail_in_workspace(tmp_path, ValueError("bad input")).exists()


def test_work_that_nobody_goes_on_with_leaves_in_the_end(tmp_path: Path) -> None:
    left = fail_in_workspace(tmp_path, ValueError("late"), "work")
    with open_working_folder(tmp_path, {"of": 2}, resume=True):
        assert left.is_dir()
    long_ago = left.stat().st_mtime - SECONDS_KEPT - 1
    os.utime(left, (long_ago, long_ago))
    with (
        file_lock(lock_of(left), "cache_dir"),
        open_working_folder(tmp_path, {"of": 2}, resume=True),
    ):
        assert left.is_dir()  # its run is a long one
    with open_working_folder(tmp_path, {"of": 1}, resume=True) as folder:
        assert (folder / "work").exists()  # goes on after all
    os.utime(fail_in_workspace(tmp_path, ValueError("late"), "work"), (long_ago, long_ago))
    with open_working_folder(tmp_path, {"of": 2}, resume=True):
        assert not left.exists()


def test_another_run_of_the_same_work_has_a_folder_of_its_own(tmp_path: Path) -> None:
    with (
        open_working_folder(tmp_path, {"of": 1}, resume=True) as first,
        open_working_folder(tmp_path, {"of": 1}, resume=True) as second,
    ):
        assert first == working_folder(tmp_path, {"of": 1}) != second
    assert not first.exists() and not second.exists()
