"""The cache, which stores artefacts (results of stages, such as calibration) for all runs.

Each artefact has a folder <root>/<kind>/<digest of the artefact's key>/. In this folder, the file
`data` contains the value of the artefact. The file `entry.json` contains the version of flap's
artefacts, the key, the label (which stage has computed the artefact, and how long this took) and
the SHA-256 of `data`.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flap.config.messages import one_line
from flap.storage.artefacts import VERSION, Artefact, Key, Kind, Label, Store, digest, file_sha256
from flap.storage.atomic_files import atomic_directory
from flap.storage.json_files import load_json
from flap.storage.locks import file_lock, lock_of

log = logging.getLogger(__name__)
T = TypeVar("T")
DATA = "data"
ENTRY = "entry.json"


@dataclass(frozen=True)
class Cache:
    """The cache in the folder `root`."""

    root: Path
    enabled: bool = True  # if false, no artefacts are looked up or stored
    # maximum seconds that a run waits while another run computes the artefact that both need
    wait_seconds: float = 3600

    def of(self, kind: Kind[T]) -> "Entries[T]":
        """Return the store that holds the artefacts of this kind."""
        return Entries(self, kind)


@dataclass(frozen=True)
class Entries(Store[T]):
    """The store of all artefacts of one kind, such as scores, in a cache."""

    cache: Cache
    kind: Kind[T]

    def find(self, key: Key) -> Artefact[T] | None:
        """Return the artefact with this key, or None if the artefact is missing or damaged.

        If the artefact is damaged, a warning is logged.
        """
        entry = self._entry(key)
        if not self.cache.enabled or not entry.is_dir():
            return None

        try:
            stored = load_json(entry / ENTRY)
            if stored["version"] != VERSION or stored["key"] != json.loads(json.dumps(key)):
                raise ValueError("it was written for another key or by another version")
            if stored["sha256"] != file_sha256(entry / DATA):
                raise ValueError("its checksum does not match")
            return Artefact(self.kind.read(entry / DATA), Label.from_dict(stored["label"]))
        except Exception as error:  # readers raise errors of many types for damaged files
            log.warning("cache: %s cannot be used and is made again (%s)", entry, one_line(error))
            return None

    def keep(self, key: Key, artefact: Artefact[T]) -> bool:
        """Write an artefact atomically, and return whether it was written.

        If the files cannot be written, a warning is logged.
        """
        if not self.cache.enabled:
            return False

        entry = self._entry(key)
        try:
            with atomic_directory(entry, "cache_dir") as folder:
                self.kind.write(artefact.value, folder / DATA)
                stored = {
                    "version": VERSION,
                    "key": key,
                    "label": artefact.label.to_dict(),
                    "sha256": file_sha256(folder / DATA),
                }
                (folder / ENTRY).write_text(json.dumps(stored, indent=1) + "\n")
        except OSError as error:
            log.warning(
                "cache_dir: %s cannot be written (%s); the computed result (%s) is not stored",
                entry.parent,
                error,
                self.kind.name,
            )
            return False
        return True

    @contextmanager
    def held(self, key: Key) -> Iterator[None]:
        """Keep other runs from computing the artefact with this key during a `with` block.

        Other runs that need the artefact wait, each at most `Cache.wait_seconds`.
        """
        if not self.cache.enabled:
            yield
            return
        with exclusive(self._entry(key), self.cache.wait_seconds):
            yield

    def _entry(self, key: Key) -> Path:
        return self.cache.root / self.kind.name / digest(key)


@contextmanager
def exclusive(entry: Path, wait_seconds: float) -> Iterator[None]:
    """Hold the lock of a folder of the cache during a `with` block.

    If another process still holds the lock after `wait_seconds`, or if no lock can be created, the
    block runs without the lock. In this case, two processes may compute the same artefact.

    entry: the folder of an artefact in the cache.
    """
    waiting = f"waiting for another process that makes {entry} ({wait_seconds:.0f} s at most)"
    with file_lock(lock_of(entry), "cache_dir", wait_seconds, waiting) as state:
        if state == "busy":
            log.warning("cache: waited %.0f s for %s; going on without it", wait_seconds, entry)
        yield
