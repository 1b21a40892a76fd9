"""Run a stage that stores its result in one store."""

from collections.abc import Callable
from typing import TypeVar

from flap.runs.memory import Memory
from flap.storage import Key, Store

T = TypeVar("T")


def remembered(store: Store[T], key: Key, make: Callable[[], T]) -> tuple[T, str]:
    """Return a stage's result with "hit", "miss" (computed and stored) or "off" (not stored)."""
    artefact = Memory().remember("stage", key, make, [store])
    return artefact.value, artefact.label.cache
