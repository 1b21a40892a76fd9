"""Run a stage, such as calibration, whose result is kept in a single `Store`."""

from collections.abc import Callable
from typing import TypeVar

from flap.runs.memory import Memory
from flap.storage import Key, Store

T = TypeVar("T")


def remembered(store: Store[T], key: Key, make: Callable[[], T]) -> tuple[T, str]:
    """Return the result of a stage, and how it was obtained.

    The second value is "hit" (read from the store), "miss" (computed and stored) or "off" (computed
    and not stored).
    """
    artefact = Memory().remember("stage", key, make, [store])
    return artefact.value, artefact.label.cache
