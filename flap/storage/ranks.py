"""The processes of a run, one for each device: what each one does, and how their results come together.

torchrun starts them, and torch.distributed connects them. With one process every function here is the identity, so
that no other code asks how many there are. All ranks make the same calls in the same order.
"""

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

WAIT_TO_BEGIN = timedelta(minutes=10)  # for a process that has not begun
WAIT = timedelta(days=2)  # for one that works; heartbeats tell of one that has ended or hangs
PR_SET_PDEATHSIG = 1  # of Linux' prctl

_rank, _size, _alone = 0, 1, False


class LostError(RuntimeError):
    """Another process of the run has ended, or cannot be reached; it has said why, if it could."""


class AgreedError(ValueError):
    """Bad input, which all processes of a run know of: each of them raises this."""


def started() -> bool:
    """Return whether this process is one of several that a launcher has started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def begin() -> None:
    """Join the processes that a launcher has started together with this one; without any, do nothing.

    Each one takes the GPU of its number on its machine, where there are GPUs.

    Raises:
        ValueError: they cannot be reached.
    """
    global _rank, _size
    if not started() or _size > 1:
        return
    import torch  # here: a run of one process that ends early does not wait for it
    from torch import distributed

    if sys.platform == "linux":  # a launcher that is killed leaves no process behind
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % gpus)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    try:
        store, own, count = next(distributed.rendezvous("env://", timeout=WAIT_TO_BEGIN))
        store.set(f"flap-begun-{own}", "")
        store.wait([f"flap-begun-{one}" for one in range(count)], WAIT_TO_BEGIN)
        distributed.init_process_group(backend, timeout=WAIT, store=store, rank=own, world_size=count)
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"the {os.environ['WORLD_SIZE']} processes of this run cannot be connected ({why})") from error
    _rank, _size = own, count


def end() -> None:
    """Leave the other processes, once all are at their end: the first one that ends in failure ends all."""
    global _rank, _size
    if _size > 1:
        from torch import distributed

        with suppress(LostError):
            wait()
        distributed.destroy_process_group()
        _rank, _size = 0, 1


def rank() -> int:
    """Return the number of this process."""
    return 0 if _alone else _rank


def size() -> int:
    """Return the number of processes."""
    return 1 if _alone else _size


def here() -> int:
    """Return how many processes are on this machine."""
    return 1 if size() == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", _size))


def first() -> bool:
    """Return whether this is the process that speaks and writes."""
    return rank() == 0


def name() -> str:
    """Return what error messages call this process."""
    return f"rank {_rank} on {platform.node()}"


@contextmanager
def alone() -> Iterator[None]:
    """Work as a run of one process inside the block, while the others wait."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def own_folder(path: Path) -> Path:
    """Return where this process keeps what is its own of the work in a folder."""
    return path if size() == 1 else path / f"rank-{rank()}"


def mine(items: Iterable[T]) -> list[T]:
    """Return the items that are this process's share: there and back, so that neighbours are on all processes."""
    return [item for k, item in enumerate(items) if _owner(k) == rank()]


def together(own: Sequence[T]) -> list[T]:
    """Return what all processes have made of their shares, in the order of the items before `mine`."""
    parts = gather(own)
    results = [iter(part) for part in parts]
    return [next(results[_owner(k)]) for k in range(sum(map(len, parts)))]


def shared(makes: Iterable[Callable[[], T]]) -> list[T]:
    """Return what each function returns; each is called by one process."""
    return together([make() for make in mine(makes)])


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks; tensors in lists and tuples come on the CPU."""
    if size() == 1:
        return [value]
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    values: list[Any] = [None] * size()
    _call("all_gather_object", values, tree_map_only(Tensor, Tensor.cpu, value))
    return values


def from_first(make: Callable[[], T]) -> T:
    """Return what a function returns that the first process alone calls. Tensors in it have to be on the CPU.

    Raises:
        AgreedError: it refuses its input, for all processes.
    """
    if size() == 1:
        return make()
    values: list[Any] = [None, None]  # what it returns, or why it refuses
    if first():
        with alone():
            try:
                values[0] = make()
            except ValueError as error:
                values[1] = str(error)
    _call("broadcast_object_list", values)
    if values[1] is not None:
        raise AgreedError(values[1])
    return cast(T, values[0])


def agreed(make: Callable[[], T]) -> T:
    """Return what a function returns that all processes call; where one of them refuses its input, all do.

    Raises:
        AgreedError: why the first process refuses that does; it is named if it is another one than the first of all.
    """
    if size() == 1:
        return make()
    refused, value = None, None
    try:
        value = make()
    except ValueError as error:
        refused = f"{'' if first() else f'{name()}: '}{error}"
    if line := next(filter(None, gather(refused)), None):
        raise AgreedError(line)
    return cast(T, value)


def add_up(tensor: "Tensor") -> None:
    """Replace a tensor by the sum of those of all processes, added in the order of their ranks: equal bits for all."""
    if size() == 1:
        return
    sent = tensor.cuda() if tensor.is_cuda else tensor.cpu()  # on one GPU of each process, wherever its layers are
    parts = [sent.new_empty(sent.shape) for _ in range(size())]
    _call("all_gather", parts, sent)
    tensor.copy_(parts[0])
    for part in parts[1:]:
        tensor += part.to(tensor.device)


def wait() -> None:
    """Wait until all processes are here."""
    gather(None)


def _owner(item: int) -> int:
    """Return the rank that has an item of some: 0, 1, 1, 0, 0, … with two processes."""
    row, column = divmod(item, size())
    return size() - 1 - column if row % 2 else column


def _call(operation: str, *given: Any) -> None:
    from torch import distributed

    try:
        getattr(distributed, operation)(*given)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise LostError(f"another process has ended, or cannot be reached ({why})") from error
