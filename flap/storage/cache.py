"""The cache of computed results on disk. A key holds everything that a result depends on; each key has its own folder.

An entry is <root>/<kind>/<digest of the key>/ with a data file and entry.json: schema, the key, the data's SHA-256.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from flap.storage import ranks
from flap.storage.atomic_files import atomic_directory, write_text
from flap.storage.locks import file_lock, lock_of

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
Key = Mapping[str, Any]
SCHEMA = 1
DATA = "data"
LABEL = "entry.json"


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A type of cache entry."""

    name: str
    write: Callable[[T, Path], None]  # to a file
    read: Callable[[Path], T]  # from that file; raises if it cannot


def as_json(name: str) -> Kind[Any]:
    """Return the kind of entry that is stored as JSON: numbers, and lists and dicts of numbers."""
    return Kind(
        name,
        lambda value, path: write_text(path, json.dumps(value)),
        lambda path: json.loads(path.read_text()),
    )


@dataclass(frozen=True)
class Cache:
    """The cache in a folder."""

    root: Path
    enabled: bool = True  # false: all is computed, and nothing stored
    wait_seconds: float = 3600  # at most, for a process that computes the same entry

    def get(self, kind: Kind[T], key: Key, make: Callable[[], T]) -> tuple[T, str]:
        """Return the value of a key and its state: "hit", "miss" (computed and stored) or "off" (computed, not stored).

        One run computes an entry while others wait for it; the processes of a run all have what the first one finds.
        A damaged entry is reported and computed again. If the folder cannot be written, or the wait takes too long,
        this process computes the value itself.
        """
        if not self.enabled:
            return make(), "off"
        entry = self.root / kind.name / digest(key)
        with ExitStack() as lock:
            look_up = partial(_wait_for, entry, kind, key, self.wait_seconds, lock)
            value, stored = found_or_made(look_up, make, partial(_keep, entry, kind, key))
        return value, {None: "hit", True: "miss", False: "off"}[stored]


def found_or_made(
    look_up: Callable[[], T | None], make: Callable[[], T], keep: Callable[[T], R]
) -> tuple[T, R | None]:
    """Return what the first process finds, and None; else what all of them make, and what the first one's `keep` says.

    The others have both from the first one, or from their own work, so that a folder that is shared late is no matter.
    """
    if (found := ranks.on_first(look_up)) is not None:
        return found, None
    value = make()
    return value, ranks.on_first(partial(keep, value))


def digest(key: Any) -> str:
    """Return the name of a key: the first twenty hex digits of the SHA-256 of its JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(entry: Path, kind: Kind[T], key: Key) -> T | None:
    """Return the value of an entry, or None if there is no entry or it is damaged, which is logged."""
    if not entry.is_dir():
        return None
    try:
        label = json.loads((entry / LABEL).read_text())
        if label["schema"] != SCHEMA or label["key"] != json.loads(json.dumps(key)):
            raise ValueError("it was written for another key or by another version")
        if label["sha256"] != file_sha256(entry / DATA):
            raise ValueError("its checksum does not match")
        return kind.read(entry / DATA)
    except Exception as error:  # a damaged file can make its reader raise anything
        log.warning(
            "cache: %s is not used and made again (%s)", entry, " ".join(str(error).split())
        )
        return None


def _wait_for(
    entry: Path, kind: Kind[T], key: Key, wait_seconds: float, lock: ExitStack
) -> T | None:
    """Return the value of an entry; or None, and `lock` has the entry's, once no other run makes it."""
    if (found := _read(entry, kind, key)) is not None:
        return found
    lock.enter_context(exclusive(entry, wait_seconds))
    return _read(entry, kind, key)


def _keep(entry: Path, kind: Kind[T], key: Key, value: T) -> bool:
    """Write an entry as an atomic directory and return True; log the reason and return False if that fails."""
    try:
        with atomic_directory(entry, "cache_dir") as folder:
            kind.write(value, folder / DATA)
            label = {"schema": SCHEMA, "key": key, "sha256": file_sha256(folder / DATA)}
            (folder / LABEL).write_text(json.dumps(label, indent=1) + "\n")
    except OSError as error:
        log.warning(
            "cache_dir: %s cannot be written (%s); what was computed (%s) is not kept",
            entry.parent,
            error,
            kind.name,
        )
        return False
    return True


@contextmanager
def exclusive(entry: Path, wait_seconds: float) -> Iterator[None]:
    """Hold the lock of an entry for as long as the block lasts.

    After `wait_seconds`, or where no lock can be made, the block runs without it: then two processes compute the same.
    """
    lock = lock_of(entry)
    with file_lock(lock, "cache_dir") as state:
        if state != "busy":
            yield
            return
    log.info("waiting for another process that makes %s (%.0f s at most)", entry, wait_seconds)
    with file_lock(lock, "cache_dir", wait_seconds) as state:
        if state == "busy":
            log.warning("cache: waited %.0f s for %s; going on without it", wait_seconds, entry)
        yield
