"""The processes of a run, one for each device, which torchrun or the tasks of a SLURM job are: who does what.

`own_share` and `gather_in_order` share work out, `add_up` sums tensors, and `on_first` and `by_first` let the first
process work and write for all. All processes make the same calls in the same order; with one process each of these is
the identity.
"""

import atexit
import os
import platform
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_rank = 0
_size = 1
_alone = False


class LostError(RuntimeError):
    """Another process of the run has ended, or did not answer within the timeout."""


class AgreedError(ValueError):
    """What all processes of a run know of: each of them raises this."""


def join(timeout: timedelta) -> None:
    """Join the processes that were started together with this one; without any, or a second time, do nothing.

    Each one takes the GPU of its number on its machine, where there are GPUs. timeout: for which a process waits for
    another one, at the start and later.

    Raises:
        ValueError: they cannot be reached.
    """
    global _rank, _size
    if (
        os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    ):
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if _size > 1 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    import torch  # here: a run of one process that ends early does not wait for it
    from torch import distributed

    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % gpus)
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the {os.environ['WORLD_SIZE']} processes of this run cannot be connected ({why})"
        ) from error
    _rank = distributed.get_rank()
    _size = distributed.get_world_size()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of each process
    atexit.register(leave)


def leave() -> None:
    """Leave the other processes, once all are at their end."""
    global _rank, _size
    if _size > 1:
        from torch import distributed

        with suppress(LostError):
            barrier()
        distributed.destroy_process_group()
        _rank = 0
        _size = 1


def rank() -> int:
    """Return the number of this process."""
    return 0 if _alone else _rank


def size() -> int:
    """Return the number of processes."""
    return 1 if _alone else _size


def is_first() -> bool:
    """Return whether this is the process that speaks, also before it has joined the others."""
    return _alone or int(os.environ.get("RANK", 0)) == 0


def name() -> str:
    """Return what error messages call this process."""
    return f"rank {_rank} on {platform.node()}"


@contextmanager
def alone() -> Iterator[None]:
    """Work as a run of one process inside the block."""
    global _alone
    before = _alone
    _alone = True
    try:
        yield
    finally:
        _alone = before


def own_folder(path: Path) -> Path:
    """Return where this process keeps what is its own of the work in a folder."""
    return path if size() == 1 else path / f"rank-{rank()}"


def own_share(items: Iterable[T]) -> list[T]:
    """Return the items that this process works on: dealt out in a zigzag, so that neighbours are on all processes."""
    return [item for k, item in enumerate(items) if _owner(k) == rank()]


def gather_in_order(own: Sequence[T]) -> list[T]:
    """Return what all processes have made of their shares, in the order of the items before `own_share`."""
    parts = gather(own)
    results = [iter(part) for part in parts]
    return [next(results[_owner(k)]) for k in range(sum(map(len, parts)))]


def each_by_one(makes: Iterable[Callable[[], T]]) -> list[T]:
    """Return what each function returns; each is called by one process."""
    return gather_in_order([make() for make in own_share(makes)])


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks; tensors in lists and tuples come on the CPU."""
    if size() == 1:
        return [value]
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    values: list[Any] = [None] * size()
    _call("all_gather_object", values, tree_map_only(Tensor, Tensor.cpu, value))
    return values


def add_up(tensor: "Tensor") -> None:
    """Replace a tensor by the sum of those of all processes, added in the order of their ranks: equal bits for all."""
    if size() == 1:
        return
    sent = (
        tensor.cuda() if tensor.is_cuda else tensor.cpu()
    )  # on one GPU of each process, wherever its layers are
    parts = [sent.new_empty(sent.shape) for _ in range(size())]
    _call("all_gather", parts, sent)
    tensor.copy_(parts[0])
    for part in parts[1:]:
        tensor += part.to(tensor.device)


def on_first(make: Callable[[], T]) -> T:
    """Return what a function returns that the first process alone calls. Tensors in it have to be on the CPU.

    Raises:
        AgreedError: it fails, in all processes.
    """
    if size() == 1:
        return make()
    value = None
    failed = None
    if is_first():
        try:
            with alone():
                value = make()
        except Exception as error:
            failed = error
    sent = [
        value,
        failed
        and (
            str(failed) if isinstance(failed, ValueError) else f"{type(failed).__name__}: {failed}"
        ),
    ]
    _call("broadcast_object_list", sent)
    if sent[1] is not None:
        raise AgreedError(sent[1]) from failed
    return cast(T, sent[0])


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Let the first process alone call a function whenever all of them do; see `on_first`."""

    @wraps(function)
    def call(*given: P.args, **options: P.kwargs) -> T:
        return on_first(partial(function, *given, **options))

    return call


@contextmanager
def held_by_first(context: AbstractContextManager[T]) -> Iterator[T]:
    """Let the first process hold a context until all are at the end of the block; yield what it gives to all."""
    with ExitStack() as stack:
        yield on_first(partial(stack.enter_context, context))
        barrier()


def agreed(make: Callable[[], T]) -> T:
    """Return what a function returns that all processes call; where one of them refuses its input, all do.

    Raises:
        AgreedError: why the first process refuses that does; it is named if it is another one than the first of all.
    """
    if size() == 1:
        return make()
    refused = None
    value = None
    try:
        value = make()
    except ValueError as error:
        refused = f"{'' if is_first() else f'{name()}: '}{error}"
    if line := next(filter(None, gather(refused)), None):
        raise AgreedError(line)
    return cast(T, value)


def barrier() -> None:
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
        raise LostError(f"another process has ended, or does not answer ({why})") from error
