"""The stages of a run, each with its name, and how its result is stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flap.storage import Kind

T = TypeVar("T")


def _nothing(*inputs: Any) -> None:
    return None


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A named step of a run."""

    name: str
    do: Callable[..., T]  # do(run, work, *inputs) makes the result; `work` is where an interrupted stage goes on
    kind: Kind[T] | None = None  # how the result is stored
    depends: Callable[..., Mapping[str, Any] | None] = _nothing  # its key in the cache; None: made anew in each run
    note: Callable[..., None] = _nothing  # note(run, result, *inputs): what the run notes of it, made or found


def stage(
    name: str,
    kind: Kind[Any] | None = None,
    depends: Callable[..., Mapping[str, Any] | None] = _nothing,
    note: Callable[..., None] = _nothing,
) -> Callable[[Callable[..., T]], Stage[T]]:
    """Return what makes a stage of the function that follows. See `Stage`."""
    return lambda do: Stage(name, do, kind, depends, note)
