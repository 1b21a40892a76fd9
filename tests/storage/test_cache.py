"""An entry of the cache is computed once, verified when it is read, and shared by processes."""

import json
import logging
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from flap.storage import Cache, Kind, digest
from flap.storage.locks import lock_of
from tests.helpers.remembered import remembered


def write_words(words: str, path: Path) -> None:
    path.write_text(words)


def read_words(path: Path) -> str:
    return path.read_text()


WORDS: Kind[str] = Kind("dense", write_words, read_words)
KEY = {"dataset": "wikitext2", "model": {"dtype": "float32"}}


def never() -> str:
    raise AssertionError("made again")


def make_value() -> str:
    return "value"


def entry(root: Path) -> Path:
    return root / "dense" / digest(KEY)


def test_an_entry_is_made_once_and_then_read(tmp_path: Path) -> None:
    store = Cache(tmp_path).of(WORDS)
    assert remembered(store, KEY, make_value) == ("value", "miss")
    assert remembered(store, KEY | {"seed": 1}, lambda: "another") == ("another", "miss")
    assert remembered(store, KEY, never) == ("value", "hit")

    later = Cache(tmp_path).of(WORDS)
    reordered = dict(reversed(KEY.items()))
    assert remembered(later, reordered, never) == ("value", "hit")


def test_a_cache_that_is_off_keeps_nothing(tmp_path: Path) -> None:
    store = Cache(tmp_path, enabled=False).of(WORDS)
    assert remembered(store, KEY, make_value) == ("value", "off")
    assert not list(tmp_path.iterdir())


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "data").read_bytes())
    data[0] ^= 1
    (folder / "data").write_bytes(data)


def remove_the_data(folder: Path) -> None:
    (folder / "data").unlink()


def truncate_the_label(folder: Path) -> None:
    (folder / "entry.json").write_text("{")


def change_the_label(folder: Path, **changes: object) -> None:
    label = json.loads((folder / "entry.json").read_text())
    (folder / "entry.json").write_text(json.dumps(label | changes))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "checksum does not match"),
        (remove_the_data, "No such file"),
        (truncate_the_label, "Expecting property name"),
        (partial(change_the_label, version=0), "another version"),
        (partial(change_the_label, key={"dataset": "c4"}), "another key"),
    ],
)
def test_a_damaged_or_foreign_entry_is_reported_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    store = Cache(tmp_path).of(WORDS)
    remembered(store, KEY, make_value)
    damage(entry(tmp_path))
    assert remembered(store, KEY, lambda: "again") == ("again", "miss")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert str(entry(tmp_path)) in caplog.text
    assert reason in caplog.text
    assert remembered(store, KEY, never) == ("again", "hit")


def test_an_error_while_making_leaves_nothing_and_no_lock(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        remembered(Cache(tmp_path).of(WORDS), KEY, never)
    assert not entry(tmp_path).exists()

    impatient = Cache(tmp_path, wait_seconds=0).of(WORDS)
    assert remembered(impatient, KEY, make_value) == ("value", "miss")


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "file"
    root.write_text("")
    assert remembered(Cache(root).of(WORDS), KEY, make_value) == ("value", "off")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(root) in record.getMessage()
    assert "cannot be written" in record.getMessage()


def test_a_full_disk_costs_the_entry_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the disk is full, the computed value is returned, and is not stored.

    The error of safetensors for a full disk must be recognised, although it is no OSError.
    """

    def write_to_a_full_disk(words: str, path: Path) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    tensors = Kind("dense", write_to_a_full_disk, read_words)
    assert remembered(Cache(tmp_path).of(tensors), KEY, make_value) == ("value", "off")
    assert f"cache_dir: {tmp_path / 'dense'} cannot be written (" in caplog.text
    assert "No space left" in caplog.text


def test_a_run_waits_for_another_one_only_so_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    entry(tmp_path).parent.mkdir(parents=True)
    with FileLock(lock_of(entry(tmp_path))):
        store = Cache(tmp_path, wait_seconds=0.2).of(WORDS)
        assert remembered(store, KEY, make_value) == ("value", "miss")
    waiting, going_on, took = caplog.messages
    assert "waiting for another process" in waiting
    assert "going on without it" in going_on
    assert took == "stage: took 0.0 s"


def make_slowly(
    root: Path, made: Path, barrier: "multiprocessing.synchronize.Barrier", found: Path
) -> None:
    """Look up an entry of the cache while other processes do the same.

    A process that computes the entry adds a line to the file `made`. Each process writes the value
    of the entry, and whether the entry was found in the cache, to its own file `found`.
    """

    def make() -> str:
        with made.open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        return "value"

    barrier.wait()
    value, state = remembered(Cache(root).of(WORDS), KEY, make)
    found.write_text(f"{value} {state}")


def test_many_processes_make_an_entry_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(5)
    made = tmp_path / "made"
    found = [tmp_path / f"found{number}" for number in range(5)]
    processes = [
        context.Process(target=make_slowly, args=(tmp_path / "root", made, barrier, file))
        for file in found
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)

    assert made.read_text() == "made\n"
    assert sorted(file.read_text() for file in found) == ["value hit"] * 4 + ["value miss"]


def die_while_making(root: Path) -> None:
    def make_for_ever() -> str:
        time.sleep(3600)
        return "value"

    remembered(Cache(root).of(WORDS), KEY, make_for_ever)


def test_a_killed_process_leaves_its_lock_to_the_next(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=die_while_making, args=(tmp_path,))
    process.start()
    while not lock_of(entry(tmp_path)).exists():
        time.sleep(0.01)
    process.kill()
    process.join()

    impatient = Cache(tmp_path, wait_seconds=0).of(WORDS)
    assert remembered(impatient, KEY, make_value) == ("value", "miss")
