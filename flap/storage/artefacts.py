"""Artefacts: the results of the stages of a run, which are remembered by what they depend on.

An artefact is found by its key, which holds everything that it depends on, and carries a label,
which says how it was made. A store is a place that remembers the artefacts of one kind.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from flap.storage.atomic_files import write_text
from flap.storage.json_files import load_json

T = TypeVar("T")
Key = Mapping[str, Any]
# The version of every artefact. Raise it when a stage gives another result for the same key; what
# earlier versions have stored is then computed again. CONTRIBUTING ("One version") says why there
# is one, and which test watches it.
VERSION = 1


@dataclass(frozen=True)
class Label:
    """How an artefact was made.

    It is stored with the artefact, so that a report can be built from labels.
    """

    stage: str  # the name of the stage
    seconds: float = 0.0  # wall-clock seconds of the stage, without the stages inside it
    # "hit": it was found; "miss": computed and stored; "off": computed, not stored
    cache: str = "off"
    inputs: tuple["Label", ...] = ()  # the labels of the stages that ran inside this one

    def to_dict(self) -> dict[str, Any]:
        """Return the label as data that JSON can store."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Label":
        """Return the label that `to_dict` has written."""
        return cls(**{**plain, "inputs": tuple(map(cls.from_dict, plain["inputs"]))})

    def walk(self) -> Iterator["Label"]:
        """Yield the labels of the stages inside this one, as they ended, and then this label."""
        for label in self.inputs:
            yield from label.walk()
        yield self


@dataclass(frozen=True)
class Artefact(Generic[T]):
    """The result of a stage, with its label."""

    value: T
    label: Label

    def marked(self, cache: str) -> "Artefact[T]":
        """Return the artefact with another state of the cache in its label."""
        return replace(self, label=replace(self.label, cache=cache))


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A type of artefact that is stored in a file of its own."""

    name: str
    write: Callable[[T, Path], None]  # writes the value to a file
    read: Callable[[Path], T]  # reads it from that file; raises if it cannot


class Store(ABC, Generic[T]):
    """A place that remembers the artefacts of one kind."""

    @abstractmethod
    def find(self, key: Key) -> Artefact[T] | None:
        """Return the artefact of a key; None if there is none, or if it is damaged."""

    @abstractmethod
    def keep(self, key: Key, artefact: Artefact[T]) -> bool:
        """Store the artefact of a key, and return whether it is stored."""

    def held(self, key: Key) -> AbstractContextManager[None]:
        """Keep other runs from computing the artefact of this key while the block lasts.

        By default no other run can compute it.
        """
        return nullcontext()


def as_json(name: str) -> Kind[Any]:
    """Return the kind of artefact that is stored as JSON: lists and dicts of numbers and texts."""

    def write(value: Any, path: Path) -> None:
        write_text(path, json.dumps(value))

    return Kind(name, write, load_json)


def digest(key: Any) -> str:
    """Return the name of a key: the first twenty hex digits of the SHA-256 of its JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
