"""Look up the stored result of each stage of a run, or compute and store the result.

A stage is a part of a run, such as calibration. The result of a stage is called an artefact, and is
stored under a key. The label of an artefact says how long the stage took, and whether the artefact
was found in a store. This module decides whether a stage has to run, so the stages need no special
code for a run that is started again. If a finished run is started again, all of its artefacts are
found. If an artefact is missing, for example because the checkpoint was deleted, only the stage of
this artefact runs again.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

from flap.runtime import ranks
from flap.runtime.progress import ONLY_IN_FILES
from flap.storage import Artefact, Key, Label, Store

log = logging.getLogger(__name__)

T = TypeVar("T")


class Memory:
    """Runs the stages of a run, and collects the labels of their artefacts."""

    def __init__(self) -> None:
        # labels of the stages that have ended; the label of a stage contains the labels of the
        # stages that ran as parts of this stage
        self.labels: list[Label] = []

    def remember(
        self, stage: str, key: Key, compute: Callable[[], T], stores: Sequence[Store[T]]
    ) -> Artefact[T]:
        """Return the artefact of a stage.

        The artefact is looked up by its key. If it is not found, it is computed and stored.

        If several runs need the same artefact, one run computes it while the other runs wait.
        Within a run, rank 0 looks the artefact up and sends it to all processes. If the artefact is
        not found, all processes compute it together, and rank 0 stores it.

        stage: the name of the stage in the report, which lists the seconds of each stage.
        key: everything on which the result depends.
        compute: computes the result.
        stores: the stores in which the artefact is looked up and stored. Without stores, the
            artefact is always computed.
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
        """Time a stage during a `with` block, and then add the label of the stage to `labels`."""
        before = self.labels
        self.labels = []
        start = time.perf_counter()
        try:
            yield
            seconds = time.perf_counter() - start - _seconds(self.labels)
            log.info("%s: took %.1f s", stage, seconds, extra=ONLY_IN_FILES)
            before.append(Label(stage, seconds, inputs=tuple(self.labels)))
        finally:
            self.labels = before


def _find(stores: Sequence[Store[T]], key: Key, locks: ExitStack) -> Artefact[T] | None:
    """Return the artefact with this key, or None if no store has it.

    If no store has the artefact, its locks in all stores are taken and added to `locks`. Until
    `locks` is closed, the locks keep other runs from computing the artefact at the same time.
    """
    artefact = _look_up(stores, key)
    if artefact is None:
        for store in stores:
            locks.enter_context(store.held(key))
        artefact = _look_up(stores, key)  # another run may have computed the artefact meanwhile
    return artefact


def _look_up(stores: Sequence[Store[T]], key: Key) -> Artefact[T] | None:
    """Return the artefact from the first store that has it; None if no store has it.

    The artefact is also copied into the stores that are listed before the store that has it.
    """
    for number, store in enumerate(stores):
        artefact = store.find(key)
        if artefact is not None:
            _keep(stores[:number], key, artefact)
            return artefact.marked("hit")
    return None


def _keep(stores: Sequence[Store[T]], key: Key, artefact: Artefact[T]) -> bool:
    """Store an artefact in each store, and return whether at least one store has kept it.

    The stores are written from the last to the first. If the first store were written first, a
    killed process could leave the artefact in the first store, and half-written files in a later
    store. The next invocation of the run would find the artefact in the first store, and would
    never remove the half-written files.
    """
    stored = [store.keep(key, artefact) for store in reversed(stores)]
    return any(stored)


def _seconds(labels: Sequence[Label]) -> float:
    """Return the seconds that this process spent in these stages and in the stages nested in them.

    Stages whose artefacts were found in a store do not count.
    """
    return sum(label.seconds for outer in labels for label in outer.walk() if label.cache != "hit")


def seconds_by_stage(labels: Sequence[Label]) -> dict[str, float]:
    """Return the wall-clock seconds of each stage, and their total.

    If an artefact was found in a store, its stage has not run again. The seconds of this stage are
    then taken from the run that computed the artefact.
    """
    seconds: dict[str, float] = {}
    for outer in labels:
        for label in outer.walk():
            seconds[label.stage] = seconds.get(label.stage, 0.0) + label.seconds
    seconds["total"] = sum(seconds.values())
    return seconds
