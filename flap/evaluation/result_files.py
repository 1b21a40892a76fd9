"""Store the measured numbers of a run, such as perplexities and accuracies.

The numbers of a task are stored as soon as the task ends. A run that is started again after an
interruption reads these numbers instead of measuring again.

The file evaluation.json has an entry for each pair of a task and a model. An entry contains

- the key, which is a dict of everything that the numbers depend on;
- the measured numbers, and for each number, whether higher or lower values are better;
- facts about the task that the report shows, such as where its documents come from;
- the label, which says, for example, how long the measurement took.

Many numbers are means over documents. Their values on single documents are in the file
documents.json.gz in the same folder.
"""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flap.evaluation.base import Documents, Measurement
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

# A dict from measured numbers to their values on single documents. A key of the dict consists of
# the name of the number, and a digest of the fields `task` and `data` in the key of its entry.
DocumentValues = dict[tuple[str, str], list[float]]
RESULTS = "evaluation.json"


@dataclass(frozen=True)
class Entry:
    """The measurement of one task on one model, with its key and its label."""

    key: Key
    value: Measurement
    label: Label
    about: Mapping[str, Any]  # facts about the task for the report


@dataclass(frozen=True)
class Results:
    """The measured numbers of a run, in the run's folder, or in memory if the run has no folder."""

    path: Path | None  # path of evaluation.json; None keeps the numbers in memory
    _in_memory: dict[str, Entry] = field(default_factory=dict)

    def of(self, about: Mapping[str, Any]) -> "TaskNumbers":
        """Return an object that reads and writes the measured numbers of a task.

        about: facts about the task that the report shows, such as where its documents come from.
        """
        return TaskNumbers(self, about)

    def entries(self) -> dict[str, Entry]:
        """Return all undamaged entries, in a dict from the digest of the key to the entry."""
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
        """Store an entry, which replaces an earlier entry with the same key."""
        entries = self.entries()
        entries[digest(entry.key)] = entry
        if self.path is None:
            self._in_memory.update(entries)
            return

        plain = {}
        documents = {}
        for name, one in entries.items():
            described = {"key": one.key, "about": one.about, "label": one.label.to_dict()}
            plain[name] = asdict(one.value) | described
            documents[name] = plain[name].pop("documents")
        # Write the values on single documents before the entries. If the process is killed between
        # these two writes, there are values without an entry, which do no harm. In the other order,
        # there would be an entry without values, and its task would have to be measured again.
        _write_compressed(documents, self._documents_path)
        write_text(self.path, to_json(plain, indent=1) + "\n")

    def forget(self) -> None:
        """Delete all entries."""
        self._in_memory.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def documents(self, numbers: Mapping[str, float | None]) -> DocumentValues:
        """Return, for given numbers of the pruned model, the stored values on single documents.

        numbers: the names and values of the numbers. An earlier invocation of `python -m flap` may
            have stored another value of a number. The values on single documents are then left out,
            because they do not belong to the given value.
        """
        values = {}
        for entry in self.entries().values():
            if not {"plan", "data"} <= entry.key.keys():  # a dense model's key has no plan
                continue
            task = digest([entry.key["task"], entry.key["data"]])
            for name, of_documents in entry.value.documents.items():
                # skip a number if its stored value differs from the given value: the stored value
                # then comes from an earlier invocation
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
            return {}  # the file is missing or damaged


@dataclass(frozen=True)
class TaskNumbers(Store[Measurement]):
    """Reads and writes the measured numbers of one task in a `Results` object."""

    results: Results
    about: Mapping[str, Any]

    def find(self, key: Key) -> Artefact[Measurement] | None:
        entry = self.results.entries().get(digest(key))
        return None if entry is None else Artefact(entry.value, entry.label)

    def keep(self, key: Key, artefact: Artefact[Measurement]) -> bool:
        self.results.add(Entry(key, artefact.value, artefact.label, self.about))
        return True


def _entry(plain: Any, documents: Documents | None) -> Entry | None:
    """Build an entry from its JSON in evaluation.json, and from its values on single documents.

    Return None if the entry is damaged, or if `documents` is None.
    """
    if documents is None:
        return None
    try:
        measured = _measurement({**plain, "documents": documents})
        return Entry(plain["key"], measured, Label.from_dict(plain["label"]), plain["about"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _measurement(plain: Mapping[str, Any]) -> Measurement:
    """Build a measurement from parsed JSON, where null stands for a number that is not finite."""
    finite = {name: plain[name] for name in ("numbers", "documents", "beside")}
    return Measurement(**infinite(finite), better=dict(plain["better"]))


def _write_compressed(value: Any, path: Path) -> None:
    with atomic_file(path) as scratch:
        scratch.write_bytes(gzip.compress(to_json(value).encode(), mtime=0))


def _read_compressed(path: Path) -> Any:
    return parse_json(gzip.decompress(path.read_bytes()))


def _write_measurement(measured: Measurement, path: Path) -> None:
    _write_compressed(asdict(measured), path)


def _read_measurement(path: Path) -> Measurement:
    return _measurement(_read_compressed(path))


DENSE: Kind[Measurement] = Kind("dense", _write_measurement, _read_measurement)
