"""What a run remembers. Each stage's result is an artefact: it is found by its key, or computed and stored, once.

Nobody but this module knows which of the two happened. A run is done already if every stage finds its artefact; it
measures more if some tasks do not; a checkpoint that was deleted or replaced is a stage that has to run again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from flap.runtime import ranks
from flap.storage import Artefact, Key, Label, Store

T = TypeVar("T")


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A step of a run whose result is remembered.

    All functions take the run and then the inputs of the stage.
    """

    name: str  # under which the report gives the seconds
    make: Callable[..., T]  # computes the result
    key: Callable[..., Key | None]  # everything that the result depends on; None: it is not stored
    stores: Callable[..., Sequence[Store[T]]]  # where the artefact is looked up and stored


class Memory:
    """The labels of the stages that a run has gone through, and how each came to its result."""

    def __init__(self) -> None:
        self._open: list[list[Label]] = [[]]  # of the run, and of each stage that is running

    def remember(
        self, name: str, key: Key | None, make: Callable[[], T], stores: Sequence[Store[T]]
    ) -> Artefact[T]:
        """Return the artefact of a stage, found by its key or computed.

        One run computes an artefact while others wait for it. All processes of a run have what the first process finds.
        The first process stores what they compute together.
        """
        if key is None:
            stores = ()

        with ExitStack() as locks:
            artefact = ranks.on_first(partial(_find, stores, key or {}, locks))
            if artefact is None:
                artefact = self._made(name, make)
                if ranks.on_first(partial(_keep, stores, key or {}, artefact)):
                    artefact = replace(artefact, label=replace(artefact.label, cache="miss"))

        self._open[-1].append(artefact.label)
        return artefact

    @property
    def labels(self) -> list[Label]:
        """The labels of the stages so far; each holds those of the stages inside it."""
        return self._open[0]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a step whose result is not stored."""
        start = time.perf_counter()
        with self._collected() as inputs:
            yield
        seconds = time.perf_counter() - start - _seconds(inputs)
        self._open[-1].append(Label(name, seconds, inputs=tuple(inputs)))

    def _made(self, name: str, make: Callable[[], T]) -> Artefact[T]:
        start = time.perf_counter()
        with self._collected() as inputs:
            value = make()
        seconds = time.perf_counter() - start - _seconds(inputs)
        return Artefact(value, Label(name, seconds, inputs=tuple(inputs)))

    @contextmanager
    def _collected(self) -> Iterator[list[Label]]:
        """Collect the labels of the stages that run inside the block."""
        inputs: list[Label] = []
        self._open.append(inputs)
        try:
            yield inputs
        finally:
            self._open.pop()


def _find(stores: Sequence[Store[T]], key: Key, locks: ExitStack) -> Artefact[T] | None:
    """Return the artefact that a store has; else None, and `locks` keeps other runs from computing it, too."""
    artefact = _look_up(stores, key)
    if artefact is None:
        for store in stores:
            locks.enter_context(store.held(key))
        artefact = _look_up(stores, key)  # another run may have computed it meanwhile
    return artefact


def _look_up(stores: Sequence[Store[T]], key: Key) -> Artefact[T] | None:
    """Return the artefact that a store has; those before it get it as well."""
    for number, store in enumerate(stores):
        artefact = store.find(key)
        if artefact is not None:
            for earlier in stores[:number]:
                earlier.keep(key, artefact)
            return artefact.found()
    return None


def _keep(stores: Sequence[Store[T]], key: Key, artefact: Artefact[T]) -> bool:
    """Store an artefact in each store, and return whether one has it.

    The last store comes first: if the process is killed, a store that is looked up first never has what a later one
    was about to get, and whose half-written files the next start would then not meet.
    """
    stored = [store.keep(key, artefact) for store in reversed(stores)]
    return any(stored)


def _seconds(labels: Sequence[Label]) -> float:
    """Return the seconds that these stages took in this process, with those inside them."""
    return sum(label.seconds for outer in labels for label in outer.walk() if label.cache != "hit")


def seconds_by_stage(labels: Sequence[Label]) -> dict[str, float]:
    """Return the wall-clock seconds of each stage when it was computed, and their total."""
    seconds: dict[str, float] = {}
    for outer in labels:
        for label in outer.walk():
            seconds[label.stage] = seconds.get(label.stage, 0.0) + label.seconds
    seconds["total"] = sum(seconds.values())
    return seconds


def states(label: Label, stage: str) -> list[str]:
    """Return the cache states of a stage inside another one: "hit", "miss" or "off"."""
    return [inner.cache for inner in label.walk() if inner.stage == stage]
