"""Atomic files: whole or as they were, and nothing of a dead process stays."""

import multiprocessing
import os
import signal
from pathlib import Path

from flap.storage.files import atomic_file, write_text


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
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) > 1
    write_text(target, "new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_writers_whose_processes_have_one_number_do_not_meet(tmp_path: Path) -> None:
    """As in two containers with one host name."""
    target = tmp_path / "status.json"
    with atomic_file(target) as scratch:
        scratch.write_text("first")
        write_text(target, "second")
        assert target.read_text() == "second"
    assert target.read_text() == "first" and list(tmp_path.iterdir()) == [target]


def test_what_is_left_of_a_longer_name_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / ".model.v2.1234abcd.lock").write_text("")
    (tmp_path / ".model.v2.1234abcd.old").mkdir()
    write_text(tmp_path / "model", "mine")
    assert (tmp_path / ".model.v2.1234abcd.old").is_dir()
