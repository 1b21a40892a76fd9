"""The cache: made once, checked when read, shared by processes, and never in the way."""

import json
import logging
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from flap.storage import Cache, Kind, digest
from flap.storage.locks import lock_of
from tests.helpers.remembered import remembered

WORDS: Kind[str] = Kind(
    "dense", lambda value, path: path.write_text(value), lambda path: path.read_text()
)
KEY = {"dataset": "wikitext2", "model": {"dtype": "float32"}}


def never() -> str:
    raise AssertionError("made again")


def entry(root: Path) -> Path:
    return root / "dense" / digest(KEY)


def test_made_once_then_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert remembered(cache.of(WORDS), KEY, lambda: "value") == ("value", "miss")
    assert remembered(cache.of(WORDS), KEY | {"seed": 1}, lambda: "another") == ("another", "miss")
    assert remembered(cache.of(WORDS), KEY, never) == ("value", "hit")
    assert remembered(Cache(tmp_path).of(WORDS), dict(reversed(KEY.items())), never) == (
        "value",
        "hit",
    )


def test_off_makes_and_keeps_nothing(tmp_path: Path) -> None:
    assert remembered(Cache(tmp_path, enabled=False).of(WORDS), KEY, lambda: "value") == (
        "value",
        "off",
    )
    assert not list(tmp_path.iterdir())


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def relabel(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: flip(folder / "data"), "checksum does not match"),
        (lambda folder: (folder / "data").unlink(), "No such file"),
        (lambda folder: (folder / "entry.json").write_text("{"), "Expecting property name"),
        (lambda folder: relabel(folder / "entry.json", version=0), "another version"),
        (lambda folder: relabel(folder / "entry.json", key={"dataset": "c4"}), "another key"),
    ],
)
def test_a_damaged_or_foreign_entry_is_reported_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], reason: str
) -> None:
    cache = Cache(tmp_path)
    remembered(cache.of(WORDS), KEY, lambda: "value")
    damage(entry(tmp_path))
    assert remembered(cache.of(WORDS), KEY, lambda: "again") == ("again", "miss")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert str(entry(tmp_path)) in caplog.text and reason in caplog.text
    assert remembered(cache.of(WORDS), KEY, never) == ("again", "hit")


def test_an_error_while_making_leaves_nothing_and_no_lock(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        remembered(Cache(tmp_path).of(WORDS), KEY, never)
    assert not entry(tmp_path).exists()
    assert remembered(Cache(tmp_path, wait_seconds=0).of(WORDS), KEY, lambda: "value") == (
        "value",
        "miss",
    )


def test_a_place_that_cannot_be_written_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert remembered(Cache(tmp_path / "file").of(WORDS), KEY, lambda: "value") == ("value", "off")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        str(tmp_path / "file") in record.getMessage() and "cannot be written" in record.getMessage()
    )


def test_a_disk_that_is_full_costs_the_entry_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As safetensors says it, whose error is no OSError and names no file."""

    def full(value: str, path: Path) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    tensors = Kind("dense", full, lambda path: path.read_text())
    assert remembered(Cache(tmp_path).of(tensors), KEY, lambda: "value") == ("value", "off")
    assert (
        f"cache_dir: {tmp_path / 'dense'} cannot be written (" in caplog.text
        and "No space left" in caplog.text
    )


def test_waiting_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    entry(tmp_path).parent.mkdir(parents=True)
    with FileLock(lock_of(entry(tmp_path))):
        assert remembered(Cache(tmp_path, wait_seconds=0.2).of(WORDS), KEY, lambda: "value") == (
            "value",
            "miss",
        )
    waiting, going_on = (record.getMessage() for record in caplog.records)
    assert "waiting for another process" in waiting
    assert "going on without it" in going_on


def make_slowly(
    root: Path, made: Path, barrier: "multiprocessing.synchronize.Barrier", found: Path
) -> None:
    def make() -> str:
        with made.open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        return "value"

    barrier.wait()
    value, state = remembered(Cache(root).of(WORDS), KEY, make)
    found.write_text(f"{value} {state}")


def test_many_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(5)
    made = tmp_path / "made"
    founds = [tmp_path / f"found{i}" for i in range(5)]
    jobs = [
        context.Process(target=make_slowly, args=(tmp_path / "root", made, barrier, found))
        for found in founds
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    assert made.read_text() == "made\n"
    assert sorted(found.read_text() for found in founds) == ["value hit"] * 4 + ["value miss"]


def die_while_making(root: Path) -> None:
    remembered(Cache(root).of(WORDS), KEY, lambda: time.sleep(60) or "value")


def test_a_killed_process_leaves_its_lock_to_the_next(tmp_path: Path) -> None:
    job = multiprocessing.get_context("fork").Process(target=die_while_making, args=(tmp_path,))
    job.start()
    while not lock_of(entry(tmp_path)).exists():
        time.sleep(0.01)
    job.kill()
    job.join()
    assert remembered(Cache(tmp_path, wait_seconds=0).of(WORDS), KEY, lambda: "value") == (
        "value",
        "miss",
    )
