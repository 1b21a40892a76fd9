"""The ledger of a run: its named stages, each timed, looked up in the cache, and resumed where it was interrupted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from flap.results import Report
from flap.storage import NOT_KEPT, Cache, Kind, WorkFolder

T = TypeVar("T")


def _nothing(*inputs: Any) -> Mapping[str, Any] | None:
    return None


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A named step of a run. do(run, work, *inputs): makes its result; `work` is where an interrupted one goes on.

    kind: how a result is stored. depends(run, *inputs): all that it depends on, its key in the cache; None: it is made
    anew in each run.
    """

    name: str
    do: Callable[..., T]
    kind: Kind[T] | None = None
    depends: Callable[..., Mapping[str, Any] | None] = _nothing


def stage(
    name: str, kind: Kind[Any] | None = None, depends: Callable[..., Mapping[str, Any] | None] = _nothing
) -> Callable[[Callable[..., T]], Stage[T]]:
    """Return what makes a stage of the function that follows. See `Stage`."""
    return lambda do: Stage(name, do, kind, depends)


@dataclass
class Ledger:
    """What a run does its stages with. states: "hit", "miss" or "off" of each stage whose result the cache may hold."""

    cache: Cache
    report: Report
    work: WorkFolder = NOT_KEPT
    states: dict[str, str] = field(default_factory=dict)

    def stage(self, stage: Stage[T], *inputs: Any) -> T:
        """Return the result of a stage, made or found; its seconds are added to those of its name in the report."""
        with self.report.timed(stage.name):
            make, key = partial(stage.do, self, self.work / stage.name, *inputs), stage.depends(self, *inputs)
            if stage.kind is None or key is None:
                return make()
            value, self.states[stage.name] = self.cache.get(stage.kind, key, make)
            return value
