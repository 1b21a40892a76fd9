"""Artefacts are the stored results of a run's stages, such as calibration.

Each artefact is looked up by its key. The key of an artefact contains everything on which the
artefact depends. The label of an artefact says which stage has computed the artefact, and how long
this took. A store keeps artefacts of the same kind, such as scores, in files.
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
# The version of all artefacts. Increase this number if you change the code of a stage so that the
# stage computes another result for the same key. Artefacts of earlier versions are then computed
# again. CONTRIBUTING.md ("One version") explains why all kinds of artefacts have the same version.
VERSION = 1


@dataclass(frozen=True)
class Label:
    """Which stage has computed an artefact, and how long this took.

    The label is stored with the artefact. If a run reads the artefact from a store, its report can
    thus say how long the stage took when the artefact was computed.
    """

    stage: str  # the name of the stage, such as "calibrate"
    # wall-clock seconds of the stage, without the seconds of the stages in `inputs`
    seconds: float = 0.0
    # "hit": the artefact was found in a store; "miss": the artefact was computed and stored; "off":
    # the artefact was computed and not stored
    cache: str = "off"
    inputs: tuple["Label", ...] = ()  # labels of the stages that ran inside this stage

    def to_dict(self) -> dict[str, Any]:
        """Return the label as a dict that can be written as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Label":
        """Build a label from the dict that `to_dict` returns."""
        return cls(**{**plain, "inputs": tuple(map(cls.from_dict, plain["inputs"]))})

    def walk(self) -> Iterator["Label"]:
        """Yield the labels of the stages inside this stage, however deep, and then this label.

        The labels are in the order in which the stages ended.
        """
        for label in self.inputs:
            yield from label.walk()
        yield self


@dataclass(frozen=True)
class Artefact(Generic[T]):
    """The result of a stage, and the label of this result."""

    value: T
    label: Label

    def marked(self, cache: str) -> "Artefact[T]":
        """Return a copy of the artefact, in which `label.cache` has the given value."""
        return replace(self, label=replace(self.label, cache=cache))


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of artefact, such as scores, and how artefacts of this kind are stored.

    Each artefact is stored in a separate file.
    """

    name: str
    write: Callable[[T, Path], None]  # writes the value to a file
    read: Callable[[Path], T]  # reads the value from a file; raises an error if the file is damaged


class Store(ABC, Generic[T]):
    """Base class of stores. A store holds the artefacts of one kind, such as scores."""

    @abstractmethod
    def find(self, key: Key) -> Artefact[T] | None:
        """Return the artefact with this key, or None if the artefact is missing or damaged."""

    @abstractmethod
    def keep(self, key: Key, artefact: Artefact[T]) -> bool:
        """Store an artefact under a key. Return whether the artefact was stored."""

    def held(self, key: Key) -> AbstractContextManager[None]:
        """Keep other runs from computing the artefact with this key during a `with` block.

        This default implementation takes no lock. Stores that several runs share override it.
        """
        return nullcontext()


def as_json(name: str) -> Kind[Any]:
    """Return a kind of artefact that is stored as JSON.

    The values of artefacts of this kind must be lists or dicts of numbers and strings.
    """

    def write(value: Any, path: Path) -> None:
        write_text(path, json.dumps(value))

    return Kind(name, write, load_json)


def digest(key: Any) -> str:
    """Return the digest of a key: the first twenty hex digits of the SHA-256 of the key's JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
