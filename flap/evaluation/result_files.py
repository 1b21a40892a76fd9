"""The numbers of a run: each is stored as soon as it is measured, so that a later start of the run finds it.

evaluation.json has for each entry its key, the numbers, which of their values are better, what the report says of the
task, and the label. documents.json.gz, beside it, has for each entry of a task the values of the documents.
"""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flap.evaluation.base import Documents, Measurement, Numbers
from flap.storage import (
    Artefact,
    Key,
    Kind,
    Label,
    Store,
    digest,
    parse_json,
    read_json,
    to_json,
    write_text,
)
from flap.storage.atomic_files import atomic_file
from flap.storage.json_files import infinite

# values of documents, by the number's name and the digest of the documents
DocumentValues = dict[tuple[str, str], list[float]]
Sides = tuple[Numbers, Numbers]  # numbers of the dense and of the pruned model
RESULTS = "evaluation.json"


@dataclass(frozen=True)
class Entry:
    """What a run has measured of one task, or of both models side by side."""

    key: Key
    value: Measurement | Sides
    label: Label
    about: Mapping[str, Any] = field(default_factory=dict)  # what the report says of the task


@dataclass(frozen=True)
class Results:
    """The numbers of a run, in its folder or, for a run without a folder, in memory."""

    path: Path | None  # evaluation.json; None: the numbers are kept in memory
    _in_memory: dict[str, Entry] = field(default_factory=dict)

    def of(self, about: Mapping[str, Any]) -> "TaskNumbers":
        """Return the store of the numbers of a task. about: what the report says of it."""
        return TaskNumbers(self, about)

    def both(self, about: Mapping[str, Any]) -> "BothNumbers":
        """Return the store of numbers that are measured of both models side by side."""
        return BothNumbers(self, about)

    def entries(self) -> dict[str, Entry]:
        """Return all entries that are whole, by the digest of their keys."""
        if self.path is None:
            return dict(self._in_memory)

        documents = self._read_documents()
        found = {}
        for name, plain in read_json(self.path).items():
            entry = _entry(plain, documents.get(name))
            if entry is not None:
                found[name] = entry
        return found

    def add(self, entry: Entry) -> None:
        """Store an entry in place of one with the same key."""
        name = digest(entry.key)
        if self.path is None:
            self._in_memory[name] = entry
            return

        plain: dict[str, Any] = {"key": entry.key}
        if isinstance(entry.value, Measurement):
            # documents first: an entry without them is measured again, documents without an entry are dropped
            documents = {
                other: one.value.documents
                for other, one in self.entries().items()
                if isinstance(one.value, Measurement)
            }
            documents[name] = entry.value.documents
            _write_compressed(documents, self._documents_path)
            plain["numbers"] = entry.value.numbers
            plain["better"] = entry.value.better
        else:
            plain["numbers"] = list(entry.value)
        plain["about"] = dict(entry.about)
        plain["label"] = entry.label.to_dict()

        stored = read_json(self.path)
        stored[name] = plain
        write_text(self.path, to_json(stored, indent=1) + "\n")

    def forget(self) -> None:
        """Delete all numbers."""
        self._in_memory.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def documents(self, numbers: Mapping[str, float | None]) -> DocumentValues:
        """Return the documents' values that are kept for these numbers of the pruned model; empty without any."""
        values = {}
        for entry in self.entries().values():
            of_pruned_model = {"plan", "data"} <= entry.key.keys()
            if not (of_pruned_model and isinstance(entry.value, Measurement)):
                continue
            task = digest([entry.key["task"], entry.key["data"]])
            for name, of_documents in entry.value.documents.items():
                # another value of the same number is of an earlier start
                if name in numbers and entry.value.numbers.get(name) == numbers[name]:
                    values[name, task] = of_documents
        return values

    @property
    def _documents_path(self) -> Path:
        assert self.path is not None
        return self.path.with_name("documents.json.gz")

    def _read_documents(self) -> dict[str, Documents]:
        try:
            return dict(_read_compressed(self._documents_path))
        except (OSError, EOFError, zlib.error, ValueError, TypeError, RecursionError):
            return {}  # missing or damaged


@dataclass(frozen=True)
class TaskNumbers(Store[Measurement]):
    """The numbers of one task in the results of a run."""

    results: Results
    about: Mapping[str, Any]

    def find(self, key: Key) -> Artefact[Measurement] | None:
        entry = self.results.entries().get(digest(key))
        if entry is None or not isinstance(entry.value, Measurement):
            return None
        return Artefact(entry.value, entry.label)

    def keep(self, key: Key, artefact: Artefact[Measurement]) -> bool:
        self.results.add(Entry(key, artefact.value, artefact.label, self.about))
        return True


@dataclass(frozen=True)
class BothNumbers(Store[Sides]):
    """Numbers that are measured of both models side by side, in the results of a run."""

    results: Results
    about: Mapping[str, Any]

    def find(self, key: Key) -> Artefact[Sides] | None:
        entry = self.results.entries().get(digest(key))
        if entry is None or isinstance(entry.value, Measurement):
            return None
        return Artefact(entry.value, entry.label)

    def keep(self, key: Key, artefact: Artefact[Sides]) -> bool:
        self.results.add(Entry(key, artefact.value, artefact.label, self.about))
        return True


def _entry(plain: Any, documents: Documents | None) -> Entry | None:
    """Return an entry of evaluation.json; None if it is damaged, or if the values of its documents are gone."""
    try:
        label = Label.from_dict(plain["label"]) if "label" in plain else Label("evaluate")
        about = plain.get("about", {})
        numbers = plain["numbers"]
        if isinstance(numbers, list):
            dense, pruned = infinite(numbers)
            return Entry(plain["key"], (dense, pruned), label, about)
        if documents is None:
            return None
        return Entry(plain["key"], _measurement({**plain, "documents": documents}), label, about)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _write_compressed(value: Any, path: Path) -> None:
    with atomic_file(path) as scratch:
        scratch.write_bytes(gzip.compress(to_json(value).encode(), mtime=0))


def _read_compressed(path: Path) -> Any:
    return parse_json(gzip.decompress(path.read_bytes()))


def _measurement(plain: Mapping[str, Any]) -> Measurement:
    """Return the measurement that was written; a number that is null was not finite."""
    numbers = infinite(plain["numbers"])
    return Measurement(numbers, infinite(plain["documents"]), dict(plain.get("better", {})))


def _write_measurement(measured: Measurement, path: Path) -> None:
    _write_compressed(asdict(measured), path)


def _read_measurement(path: Path) -> Measurement:
    return _measurement(_read_compressed(path))


DENSE: Kind[Measurement] = Kind("dense", _write_measurement, _read_measurement)
