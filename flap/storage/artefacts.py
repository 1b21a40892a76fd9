"""Artefacts are the stored results of a run's stages, such as calibration.

Each artefact is looked up by its key. The key of an artefact contains everything on which the
artefact depends. The label of an artefact says how the artefact was made. A store holds the
artefacts of one kind in files.
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
# The version of all artefacts. Increase it if you change a stage so that its result for the same
# key changes. Artefacts of earlier versions are then computed again. CONTRIBUTING.md ("One
# version") explains why all kinds of artefacts have the same version.
VERSION = 1


@dataclass(frozen=True)
class Label:
    """How an artefact was made.

    The label is stored with the artefact, so that a report can also describe stages that an earlier
    run has computed.
    """

    stage: str  # the name of the stage, such as "calibrate"
    seconds: float = 0.0  # wall-clock seconds of the stage, without its nested stages
    # "hit": the artefact was found in a store; "miss": it was computed and stored; "off": it was
    # computed and not stored
    cache: str = "off"
    inputs: tuple["Label", ...] = ()  # labels of nested stages

    def to_dict(self) -> dict[str, Any]:
        """Return the label as data that JSON can store."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Label":
        """Build a label from the dict that `to_dict` returns."""
        return cls(**{**plain, "inputs": tuple(map(cls.from_dict, plain["inputs"]))})

    def walk(self) -> Iterator["Label"]:
        """Yield the labels of nested stages in the order in which they ended, then this label."""
        for label in self.inputs:
            yield from label.walk()
        yield self


@dataclass(frozen=True)
class Artefact(Generic[T]):
    """The result of a stage, with its label."""

    value: T
    label: Label

    def marked(self, cache: str) -> "Artefact[T]":
        """Return a copy of the artefact, with the given value of `cache` in its label."""
        return replace(self, label=replace(self.label, cache=cache))


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of artefact, such as scores. Each artefact of a kind is stored in a separate file."""

    name: str
    write: Callable[[T, Path], None]  # writes the value to a file
    read: Callable[[Path], T]  # reads the value from a file; raises an error if the file is damaged


class Store(ABC, Generic[T]):
    """Stores the artefacts of one kind."""

    @abstractmethod
    def find(self, key: Key) -> Artefact[T] | None:
        """Return the artefact with this key; None if it is missing or damaged."""

    @abstractmethod
    def keep(self, key: Key, artefact: Artefact[T]) -> bool:
        """Store an artefact under a key, and return whether this succeeded."""

    def held(self, key: Key) -> AbstractContextManager[None]:
        """Keep other runs from computing the artefact with this key during a `with` block.

        This default implementation takes no lock, and is for stores that only one run uses.
        """
        return nullcontext()


def as_json(name: str) -> Kind[Any]:
    """Return a kind of artefact that is stored as JSON.

    The values of these artefacts are lists and dicts of numbers and strings.
    """

    def write(value: Any, path: Path) -> None:
        write_text(path, json.dumps(value))

    return Kind(name, write, load_json)


def digest(key: Any) -> str:
    """Return the digest of a key: the first twenty hex digits of the SHA-256 of its JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
