"""The results of a run in files: each is stored as soon as it is measured, so that a resumed run does it only once."""

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flap.evaluation.base import Documents, Measurement
from flap.storage import Kind, digest, read_json, to_json, write_text
from flap.storage.atomic_files import atomic_file
from flap.storage.cache import found_or_made
from flap.storage.json_files import infinite

Key = Mapping[str, Any]
# values of documents, by the number's name and the digest of the documents
DocumentValues = dict[tuple[str, str], list[float]]
RESULTS = "evaluation.json"


@dataclass(frozen=True)
class Results:
    """The files of a run's results. Entries are named by the digest of all that they depend on, the key."""

    # evaluation.json: for each entry its key, its numbers, and which of their values are better. In the same folder is
    # documents.json.gz: for each entry of a task the values of the documents, by the number's name.
    path: Path

    def measured(self, key: Key, make: Callable[[], Measurement]) -> Measurement:
        """Return the stored measurement of a key; if there is none, store and return that of `make`."""
        measured: Measurement = found_or_made(
            partial(self._find, key), make, partial(self._store, key)
        )[0]
        return measured

    def _find(self, key: Key) -> Measurement | None:
        stored = self.stored().get(digest(key))
        return None if stored is None else stored[1]

    def _store(self, key: Key, measured: Measurement) -> None:
        documents = {entry: one.documents for entry, (_, one) in self.stored().items()}
        _write_compressed(documents | {digest(key): measured.documents}, self._documents)
        better = {"better": measured.better} if measured.better else {}
        self._write(key, {"numbers": measured.numbers, **better})

    def get(self, key: Key, make: Callable[[], Any]) -> Any:
        """Return the stored numbers of a key; if there are none, store and return those of `make`."""
        if digest(key) not in read_json(self.path):
            self._write(key, {"numbers": make()})
        return infinite(read_json(self.path)[digest(key)]["numbers"])

    def begin(self) -> None:
        """Make the file, if it is not there: from now on the run's folder says that it has begun to measure."""
        if not self.path.is_file():
            write_text(self.path, "{}\n")

    def stored(self) -> dict[str, tuple[Key, Measurement]]:
        """Return the key and the measurement of each task's entry that both files have."""
        entries = read_json(self.path)
        return {
            name: (entry["key"], _measurement({"documents": values, **entry}))
            for name, values in _read_documents(self._documents).items()
            if (entry := entries.get(name))
        }

    def documents(self, numbers: Mapping[str, float | None]) -> DocumentValues:
        """Return the documents' values that are kept for these numbers of the pruned model; empty without any."""
        return {
            (name, digest([key["task"], key["data"]])): values
            for key, measured in self.stored().values()
            if {"plan", "data"} <= key.keys()  # the dense model's have no plan
            for name, values in measured.documents.items()
            if name in numbers
            and measured.numbers.get(name) == numbers[name]  # others are of an earlier start
        }

    @property
    def _documents(self) -> Path:
        return self.path.with_name("documents.json.gz")

    def _write(self, key: Key, entry: Mapping[str, Any]) -> None:
        write_text(
            self.path,
            to_json(read_json(self.path) | {digest(key): {"key": key, **entry}}, indent=1) + "\n",
        )


def _write_compressed(value: Any, path: Path) -> None:
    with atomic_file(path) as scratch:
        scratch.write_bytes(gzip.compress(to_json(value).encode(), mtime=0))


def _read_compressed(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def _measurement(plain: Mapping[str, Any]) -> Measurement:
    """Return the measurement that was written; a number that is null was not finite."""
    return Measurement(
        infinite(plain["numbers"]), infinite(plain["documents"]), plain.get("better", {})
    )


def _read_documents(path: Path) -> dict[str, Documents]:
    try:
        return dict(_read_compressed(path))
    except (OSError, EOFError, zlib.error, ValueError, TypeError):  # missing or damaged
        return {}


DENSE: Kind[Measurement] = Kind(
    "dense",
    lambda measured, path: _write_compressed(asdict(measured), path),
    lambda path: _measurement(_read_compressed(path)),
)
