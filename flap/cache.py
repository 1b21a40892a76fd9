"""What is computed once and kept: folders on disk, each under a key of all that its content depends on.

An entry is <root>/<kind>/<digest of the key>/ with a data file and entry.json: schema, the key, the data's SHA-256.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout

from flap.errors import one_line
from flap.files import write_text, written_whole

log = logging.getLogger(__name__)
T = TypeVar("T")
Key = Mapping[str, Any]
SCHEMA = 1
DATA, LABEL = "data", "entry.json"


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What sort of thing an entry holds, and how it becomes a file and back. `read` raises where it finds no such."""

    name: str
    write: Callable[[T, Path], None]
    read: Callable[[Path], T]


def as_json(name: str) -> Kind[Any]:
    """The kind of entries that JSON holds as they are: numbers, lists and dicts of them."""
    return Kind(
        name, lambda value, path: write_text(path, json.dumps(value)), lambda path: json.loads(path.read_text())
    )


@dataclass(frozen=True)
class Cache:
    """Entries below `root`; `wait_seconds`: how long to wait for another process that makes the same one."""

    root: Path
    enabled: bool = True
    wait_seconds: float = 3600

    def get(self, kind: Kind[T], key: Key, make: Callable[[], T]) -> tuple[T, str]:
        """The entry, made and kept where it is not there; and "hit", "miss" or "off" (made, but not kept).

        One process makes it, others wait. A damaged entry is reported and made again. Where nothing can be written,
        or the wait gets too long, it is made here.
        """
        if not self.enabled:
            return make(), "off"
        entry = self.root / kind.name / digest(key)
        if (found := _read(entry, kind, key)) is not None:
            return found, "hit"
        with alone(entry, self.wait_seconds):
            if (found := _read(entry, kind, key)) is not None:
                return found, "hit"
            value = make()
            return value, "miss" if _keep(entry, kind, key, value) else "off"


def digest(key: Any) -> str:
    """Twenty hex digits that name a key: SHA-256 of its JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(entry: Path, kind: Kind[T], key: Key) -> T | None:
    """The entry's value, or None where there is none or none that can be trusted, which is said."""
    if not entry.is_dir():
        return None
    try:
        label = json.loads((entry / LABEL).read_text())
        if label["schema"] != SCHEMA or label["key"] != json.loads(json.dumps(key)):
            raise ValueError("it was written for another key or by another version")
        if label["sha256"] != file_sha256(entry / DATA):
            raise ValueError("its checksum does not match")
        return kind.read(entry / DATA)
    except Exception as error:  # whatever a foreign or damaged file makes its reader raise
        log.warning("cache: %s is not used and made again (%s)", entry, one_line(error))
        return None


def _keep(entry: Path, kind: Kind[T], key: Key, value: T) -> bool:
    """Write the entry whole, or say why it cannot be kept."""
    try:
        with written_whole(entry) as folder:
            kind.write(value, folder / DATA)
            label = {"schema": SCHEMA, "key": key, "sha256": file_sha256(folder / DATA)}
            (folder / LABEL).write_text(json.dumps(label, indent=1) + "\n")
    except OSError as error:
        log.warning(
            "cache_dir: %s cannot be written (%s); what was computed (%s) is not kept", entry.parent, error, kind.name
        )
        return False
    return True


@contextmanager
def alone(entry: Path, wait_seconds: float) -> Iterator[None]:
    """Hold the lock of what is to be made, or go on without it: then it is made twice, and nothing else is lost."""
    lock = FileLock(entry.with_suffix(".lock"))
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that makes %s (%.0f s at most)", entry, wait_seconds)
        try:
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            log.warning("cache: waited %.0f s for %s; going on without it", wait_seconds, entry)
    except OSError as error:
        log.debug("no lock for %s: %s", entry, error)
    try:
        yield
    finally:
        lock.release()
