"""Files are written completely or not at all. Temporary files of killed processes are removed."""

import mmap
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from flap.storage.atomic_files import atomic_directory, atomic_file, remove_leftovers, write_text
from tests.helpers.network_files import as_on_nfs


def die_while_writing(target: Path) -> None:
    with atomic_file(target) as scratch:
        scratch.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    target.write_text("old")
    process = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(target,))
    process.start()
    process.join()
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) > 1

    write_text(target, "new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_writers_whose_processes_have_one_number_do_not_meet(tmp_path: Path) -> None:
    """Two writers with the same host name and process id (in two containers) must not collide."""
    target = tmp_path / "status.json"
    with atomic_file(target) as scratch:
        scratch.write_text("first")
        write_text(target, "second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_left_of_a_longer_name_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / ".model.v2.1234abcd.lock").write_text("")
    (tmp_path / ".model.v2.1234abcd.old").mkdir()
    remove_leftovers(tmp_path / "model")
    assert (tmp_path / ".model.v2.1234abcd.old").is_dir()
    assert not (tmp_path / "model").exists()


def test_what_nfs_does_not_remove_at_once_goes_later(tmp_path: Path) -> None:
    """On NFS, a folder cannot be removed as long as one of its files is memory-mapped.

    `remove_leftovers` removes such a folder after the file was unmapped.
    """
    target = tmp_path / "model"
    mapped: list[mmap.mmap] = []

    def fail_while_writing() -> None:
        with atomic_directory(target, "checkpoint.dir") as scratch:
            (scratch / "weights").write_text("half")
            with (scratch / "weights").open() as file:
                mapped.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            raise OSError("no space left")

    with as_on_nfs(tmp_path):
        with pytest.raises(OSError, match="no space left"):
            fail_while_writing()
        assert len(list(tmp_path.glob(".model.*.new"))) == 1
        mapped.pop().close()
        remove_leftovers(target)
    assert not list(tmp_path.iterdir())
