"""Locks: held by one process at a time, and done without where there are none."""

import logging
from pathlib import Path

import pytest
from filelock import FileLock

from flap.storage import Cache, as_json
from flap.storage.locks import file_lock
from flap.storage.workspace import workspace


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks, as some network file systems."""

    def refuse(self: FileLock, timeout: float | None = None) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    with file_lock(tmp_path / "lock", "cache_dir") as first, file_lock(tmp_path / "lock", "cache_dir") as second:
        assert (first, second) == ("held", "busy")
    with file_lock(tmp_path / "lock", "cache_dir") as third:
        assert third == "held"


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_cache_works_and_one_line_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, kind = Cache(tmp_path), as_json("numbers")
    with caplog.at_level(logging.WARNING):
        assert [cache.get(kind, {"of": n}, lambda n=n: n) for n in (1, 2, 1)] == [(1, "miss"), (2, "miss"), (1, "hit")]
    [line] = caplog.messages
    assert line.startswith(f"cache_dir: no lock in {tmp_path / 'numbers'}") and "No locks available" in line


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_run_works_in_a_folder_of_its_own(tmp_path: Path) -> None:
    with workspace(tmp_path, {"of": 1}, resume=True) as folder:
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("error", "stays"),
    [(ValueError("bad input"), False), (RuntimeError("out of memory"), True), (OSError("stale file handle"), True)],
)
def test_work_stays_where_the_next_start_may_have_more_luck(error: Exception, stays: bool, tmp_path: Path) -> None:
    def fail() -> None:
        with workspace(tmp_path, {"of": 1}, resume=True) as folder:
            (folder / "work").write_text("hours")
            raise error

    with pytest.raises(type(error)):
        fail()
    with workspace(tmp_path, {"of": 1}, resume=True) as folder:
        assert (folder / "work").exists() == stays


def test_an_error_of_the_disk_in_the_words_of_a_field_keeps_the_work(tmp_path: Path) -> None:
    def fail() -> None:
        with workspace(tmp_path, {"of": 1}, resume=True) as folder:
            (folder / "work").write_text("hours")
            raise ValueError("checkpoint.dir=x: cannot be written") from OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"checkpoint\.dir"):
        fail()
    with workspace(tmp_path, {"of": 1}, resume=True) as folder:
        assert (folder / "work").read_text() == "hours"
