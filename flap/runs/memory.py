"""What a run remembers.

Each stage's result is an artefact. It is found by its key, or computed and stored once.

Nobody but this module knows which of the two happened. A run is done already if every stage finds
its artefact; it measures more if some tasks do not; a checkpoint that was deleted or replaced is a
stage that has to run again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

from flap.runtime import ranks
from flap.storage import Artefact, Key, Label, Store

T = TypeVar("T")


class Memory:
    """The stages that a run has gone through."""

    def __init__(self) -> None:
        self.labels: list[
            Label
        ] = []  # of the stages so far; each holds those of the stages inside it

    def remember(
        self, stage: str, key: Key, compute: Callable[[], T], stores: Sequence[Store[T]]
    ) -> Artefact[T]:
        """Return the artefact of a stage, found by its key or computed.

        One run computes an artefact while others wait for it. All processes of a run have what the
        first process finds. The first process stores what they compute together.

        stage: the name under which the report gives the seconds.
        key: everything that the result depends on.
        stores: where the artefact is looked up and stored; if there are none, it is always
            computed.
        """
        with ExitStack() as locks:
            artefact = ranks.on_first(partial(_find, stores, key, locks))
            if artefact is None:
                with self.timed(stage):
                    value = compute()
                artefact = Artefact(value, self.labels.pop())
                if ranks.on_first(partial(_keep, stores, key, artefact)):
                    artefact = artefact.marked("miss")

        self.labels.append(artefact.label)
        return artefact

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a stage whose result is not stored."""
        before = self.labels
        self.labels = []
        start = time.perf_counter()
        try:
            yield
            seconds = time.perf_counter() - start - _seconds(self.labels)
            before.append(Label(stage, seconds, inputs=tuple(self.labels)))
        finally:
            self.labels = before


def _find(stores: Sequence[Store[T]], key: Key, locks: ExitStack) -> Artefact[T] | None:
    """Return the artefact of a store, or None if there is none.

    Then `locks` keeps other runs from computing it, too.
    """
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
            _keep(stores[:number], key, artefact)
            return artefact.marked("hit")
    return None


def _keep(stores: Sequence[Store[T]], key: Key, artefact: Artefact[T]) -> bool:
    """Store an artefact in each store, and return whether one has it.

    The last store comes first: if the process is killed, a store that is looked up first never has
    what a later one was about to get, and whose half-written files the next start would then not
    meet.
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
