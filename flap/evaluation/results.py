"""The results of a run in files: each is stored as soon as it is measured, so that a resumed run does it only once."""

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flap.evaluation.base import Documents, Measurement
from flap.storage import Kind, digest, write_text
from flap.storage.files import atomic_file

Key = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The files of a run's results. Entries are named by the digest of all that they depend on, the key.

    path: evaluation.json: for each entry its key and its numbers. Beside it documents.json.gz: for each entry of a task
    the values of the documents, by the number's name.
    """

    path: Path

    def measured(self, key: Key, make: Callable[[], Measurement]) -> Measurement:
        """Return the stored measurement of a key; if there is none, store and return that of `make`."""
        path, name, stored = self.path.with_name("documents.json.gz"), digest(key), self._read()
        documents = {entry: values for entry, values in _read_documents(path).items() if entry in stored}

        def make_both() -> dict[str, float]:
            measured = make()
            documents[name] = measured.documents
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _write_compressed(documents, path)
            return measured.numbers

        return Measurement(self.get(key, make_both, again=name not in documents), documents[name])

    def get(self, key: Key, make: Callable[[], Any], again: bool = False) -> Any:
        """Return the stored numbers of a key; if there are none, or `again`, store and return those of `make`."""
        entries, name = self._read(), digest(key)
        if again or name not in entries:
            entries |= {name: {"key": key, "numbers": make()}}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(entries, indent=1) + "\n")
        return entries[name]["numbers"]

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.path.read_text())
            return {name: entry for name, entry in entries.items() if "numbers" in entry}
        except (FileNotFoundError, ValueError, AttributeError, TypeError):  # a damaged file is ignored
            return {}


def _write_compressed(value: Any, path: Path) -> None:
    with atomic_file(path) as scratch:
        scratch.write_bytes(gzip.compress(json.dumps(value).encode(), mtime=0))


def _read_compressed(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def _read_documents(path: Path) -> dict[str, Documents]:
    try:
        return dict(_read_compressed(path))
    except (OSError, EOFError, zlib.error, ValueError, TypeError):  # as above
        return {}


DENSE: Kind[Measurement] = Kind(
    "dense",
    lambda measured, path: _write_compressed(asdict(measured), path),
    lambda path: Measurement(**_read_compressed(path)),
)
