"""Only one process at a time holds a lock.

On a file system without locks, the cache still works, but flap refuses to distribute the GPUs of a
machine among several processes.
"""

import logging
from pathlib import Path

import pytest

from flap.runs.sweeps.launching import claim_gpu
from flap.storage import Cache, as_json
from flap.storage.locks import file_lock
from tests.helpers.remembered import remembered


def test_a_lock_is_held_once_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with file_lock(lock, "cache_dir") as first, file_lock(lock, "cache_dir") as second:
        assert first == "held"
        assert second == "busy"
    with file_lock(lock, "cache_dir") as third:
        assert third == "held"


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_cache_works_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Cache(tmp_path).of(as_json("numbers"))

    def double(number: int) -> tuple[int, str]:
        return remembered(store, {"of": number}, lambda: 2 * number)

    with caplog.at_level(logging.WARNING):
        assert double(1) == (2, "miss")
        assert double(2) == (4, "miss")
        assert double(1) == (2, "hit")
    [line] = caplog.messages
    assert line.startswith(f"cache_dir: no file lock in {tmp_path / 'numbers'} ([Errno ")
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.usefixtures("no_locks")
def test_without_locks_processes_that_share_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        ValueError, match=r"^hydra\.sweep\.dir=\S+: the disk has no file locks, .*n_jobs=1$"
    ):
        claim_gpu(tmp_path)
