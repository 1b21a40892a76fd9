"""The cache: made once, checked when read, shared by processes, and never in the way."""

import json
import logging
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import flap
from flap.storage.atomic_files import atomic_directory
from flap.storage.cache import Cache, Kind, digest
from flap.storage.cache_command import KINDS, main
from flap.storage.locks import file_lock, lock_of, use

WORDS: Kind[str] = Kind("dense", lambda value, path: path.write_text(value), lambda path: path.read_text())
KEY = {"dataset": "wikitext2", "model": {"dtype": "float32"}}


def never() -> str:
    raise AssertionError("made again")


def entry(root: Path) -> Path:
    return root / "dense" / digest(KEY)


def test_made_once_then_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get(WORDS, KEY, lambda: "value") == ("value", "miss")
    assert cache.get(WORDS, KEY, never) == ("value", "hit")
    assert Cache(tmp_path).get(WORDS, dict(reversed(KEY.items())), never) == ("value", "hit")


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.get(WORDS, KEY, lambda: "one")
    assert cache.get(WORDS, KEY | {"seed": 1}, lambda: "two") == ("two", "miss")
    assert cache.get(WORDS, KEY, never) == ("one", "hit")


def test_off_makes_and_keeps_nothing(tmp_path: Path) -> None:
    assert Cache(tmp_path, enabled=False).get(WORDS, KEY, lambda: "value") == ("value", "off")
    assert not list(tmp_path.iterdir())


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def relabel(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: flip(folder / "data"), "checksum does not match"),
        (lambda folder: (folder / "data").write_text(""), "checksum does not match"),
        (lambda folder: (folder / "data").unlink(), "No such file"),
        (lambda folder: (folder / "entry.json").unlink(), "No such file"),
        (lambda folder: (folder / "entry.json").write_text("{"), "Expecting property name"),
        (lambda folder: (folder / "entry.json").write_text("[]"), "list indices"),
        (lambda folder: relabel(folder / "entry.json", schema=0), "another version"),
        (lambda folder: relabel(folder / "entry.json", key={"dataset": "c4"}), "another key"),
    ],
)
def test_a_damaged_or_foreign_entry_is_reported_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], reason: str
) -> None:
    cache = Cache(tmp_path)
    cache.get(WORDS, KEY, lambda: "value")
    damage(entry(tmp_path))
    assert cache.get(WORDS, KEY, lambda: "again") == ("again", "miss")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert str(entry(tmp_path)) in caplog.text and reason in caplog.text
    assert cache.get(WORDS, KEY, never) == ("again", "hit")


def test_an_error_while_making_leaves_nothing_and_no_lock(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Cache(tmp_path).get(WORDS, KEY, never)
    assert not entry(tmp_path).exists()
    assert Cache(tmp_path, wait_seconds=0).get(WORDS, KEY, lambda: "value") == ("value", "miss")


def test_a_place_that_cannot_be_written_is_said_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert Cache(tmp_path / "file").get(WORDS, KEY, lambda: "value") == ("value", "off")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "file") in record.getMessage() and "cannot be written" in record.getMessage()


def test_waiting_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    entry(tmp_path).parent.mkdir(parents=True)
    with FileLock(lock_of(entry(tmp_path))):
        assert Cache(tmp_path, wait_seconds=0.2).get(WORDS, KEY, lambda: "value") == ("value", "miss")
    waiting, going_on = (record.getMessage() for record in caplog.records)
    assert "waiting for another process" in waiting
    assert "going on without it" in going_on


def make_slowly(root: Path, made: Path, barrier: "multiprocessing.synchronize.Barrier", found: Path) -> None:
    def make() -> str:
        with made.open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        return "value"

    barrier.wait()
    value, state = Cache(root).get(WORDS, KEY, make)
    found.write_text(f"{value} {state}")


def test_many_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, made = context.Barrier(5), tmp_path / "made"
    founds = [tmp_path / f"found{i}" for i in range(5)]
    jobs = [context.Process(target=make_slowly, args=(tmp_path / "root", made, barrier, found)) for found in founds]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    assert made.read_text() == "made\n"
    assert sorted(found.read_text() for found in founds) == ["value hit"] * 4 + ["value miss"]


def die_while_making(root: Path) -> None:
    Cache(root).get(WORDS, KEY, lambda: time.sleep(60) or "value")


def test_a_killed_process_leaves_its_lock_to_the_next(tmp_path: Path) -> None:
    job = multiprocessing.get_context("fork").Process(target=die_while_making, args=(tmp_path,))
    job.start()
    while not lock_of(entry(tmp_path)).exists():
        time.sleep(0.01)
    job.kill()
    job.join()
    assert Cache(tmp_path, wait_seconds=0).get(WORDS, KEY, lambda: "value") == ("value", "miss")


def test_list_names_size_age_and_key_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Cache(tmp_path).get(WORDS, KEY, lambda: "v" * 2000)
    (tmp_path / "models" / "tiny-123").mkdir(parents=True)
    main(["--cache-dir", str(tmp_path)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "dataset wikitext2, model (dtype float32)" in shown.replace("│ │ │ │ ", "")
    assert "2.2 kB" in shown and "seconds" in shown and "tiny-123" in shown


def test_brackets_and_colons_of_a_name_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[old] [", "models", "[bold]a:x:").mkdir(parents=True)
    main(["--cache-dir", "[old] ["])
    shown = capsys.readouterr().out
    assert "[old] [: " in shown and "[bold]a:x:" in shown


def test_clear_takes_a_kind_or_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Cache(tmp_path).get(WORDS, KEY, lambda: "value")
    (tmp_path / "dense" / ".0123.1234abcd.new").mkdir()
    (tmp_path / "dense" / ".0123.1234abcd.lock").touch()
    for folder in ("models/tiny", "not-ours/data"):
        (tmp_path / folder).mkdir(parents=True)
    main(["clear", "--cache-dir", str(tmp_path), "--kind", "dense"])
    assert not list((tmp_path / "dense").iterdir()) and (tmp_path / "models" / "tiny").exists()
    main(["clear", "--cache-dir", str(tmp_path)])
    assert not (tmp_path / "models" / "tiny").exists() and (tmp_path / "not-ours" / "data").exists()
    assert capsys.readouterr().out.count("removed 1 entries") == 2


def test_clear_leaves_what_other_processes_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("worked-in", "read-1.7B", "free"):
        (tmp_path / "models" / name).mkdir(parents=True)
    worked_in, read, free = (tmp_path / "models" / name for name in ("worked-in", "read-1.7B", "free"))
    with atomic_directory(tmp_path / "models" / "new", "cache_dir") as scratch, FileLock(lock_of(worked_in)):
        use(read)
        main(["clear", "--cache-dir", str(tmp_path)])
        assert scratch.is_dir() and worked_in.is_dir() and read.is_dir() and not free.exists()
        assert lock_of(worked_in).exists() and lock_of(read).exists() and not lock_of(free).exists()
        with file_lock(lock_of(worked_in), "cache_dir") as state:
            assert state == "busy"
    said = capsys.readouterr().out
    assert "removed 1 entries" in said and "2 stay: a process uses them" in said


def test_every_kind_of_entry_is_listed_and_cleared() -> None:
    source = "\n".join(path.read_text() for path in Path(flap.__file__).parent.rglob("*.py"))
    kinds = dict(re.findall(r'^(\w+)(?:: Kind[^=]*)? ?= (?:Kind|as_json)\(\s*"(\w+)"', source, re.MULTILINE))
    named = re.findall(r'(?:cache\.get\(\s*|@stage\("\w+", \w+, )([A-Z][A-Z_]+)', source)
    cached = {kinds[constant] for constant in named}
    assert {"statistics", "scores", "self"} <= cached <= set(KINDS)
