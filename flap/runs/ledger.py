"""The ledger of a run: its named stages, and what each of them takes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Generic, TypeVar

from flap.config import FlapConfig
from flap.data import SELF, parse
from flap.runs.choices import Choices
from flap.storage import Kind

T = TypeVar("T")


@dataclass(frozen=True)
class Memory:
    """The memory in use at one moment, in bytes."""

    weights: float = 0  # tensors of the model, on the device
    work: float = 0  # all else on the device
    host: float = 0  # on the host and not in a file
    streams: float = 0  # hidden states in mapped files
    read: float = 0  # weights in the mapped files that they are read from

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Cost:
    """What a stage takes."""

    moments: Sequence[Memory] = ()  # at which its memory may be at its peak; none: the stage is not estimated
    passes: int = 0  # walks over all layers, and forward passes in their place, at most
    tokens: float = 0  # that pass through a layer, on average over the layers
    operations: float = 0  # of floating point: a multiplication and an addition are two
    files: float = 0  # bytes below `cache_dir` at their most, besides what earlier stages have left there
    left: float = 0  # bytes of them that stay until the run ends
    checkpoint: float = 0  # bytes that are written elsewhere
    left_out: tuple[str, ...] = ()  # measurements that are not estimated


def _nothing(*inputs: Any) -> None:
    return None


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A named step of a run."""

    name: str
    do: Callable[..., T]  # do(run, work, *inputs) makes the result; `work` is where an interrupted stage goes on
    cost: Callable[..., Cost]  # cost(forecast, *inputs), where inputs that earlier stages make are not known
    kind: Kind[T] | None = None  # how the result is stored
    depends: Callable[..., Mapping[str, Any] | None] = _nothing  # its key in the cache; None: made anew in each run
    note: Callable[..., None] = _nothing  # note(run, result, *inputs): what the run notes of it, made or found


def stage(
    name: str,
    cost: Callable[..., Cost],
    kind: Kind[Any] | None = None,
    depends: Callable[..., Mapping[str, Any] | None] = _nothing,
    note: Callable[..., None] = _nothing,
) -> Callable[[Callable[..., T]], Stage[T]]:
    """Return what makes a stage of the function that follows. See `Stage`."""
    return lambda do: Stage(name, do, cost, kind, depends, note)


@dataclass(kw_only=True)
class Ledger(ABC):
    """What goes through the stages of a run, in their order: a run does them, a forecast adds up what they take."""

    config: FlapConfig
    choices: Choices

    @abstractmethod
    def stage(self, stage: Stage[T], *inputs: Any) -> T:
        """Go through a stage, and return its result; a forecast has none."""

    @property
    def own_shares(self) -> dict[str, float]:
        """The share of the texts of calibration and of recovery that the model writes itself, where it writes any."""
        recovery = self.choices.recovery
        datasets = {"calibration": self.config.calibration.dataset} if self.choices.need_windows else {}
        datasets |= {"recovery": recovery.dataset} if recovery and recovery.use == "recovery" else {}
        shares = {}
        for use, dataset in datasets.items():
            parts = parse(dataset, "dataset")
            shares[use] = sum(part.weight for part in parts if part.dataset == SELF) / sum(one.weight for one in parts)
        return {use: share for use, share in shares.items() if share}
