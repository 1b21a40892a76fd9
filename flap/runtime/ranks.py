"""The processes of a run, one for each device, started by torchrun or as the tasks of a SLURM job.

`own_share` and `gather_in_order` share items among the processes, `add_up` sums tensors, and
`on_first` and `by_first` let rank 0 work and write for all. All processes make the same calls in
the same order. With one process, each of these functions returns what it was given.
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
    """An error that all processes of a run raise together."""


def join(timeout: timedelta) -> None:
    """Connect this process with the others that were started together with it.

    Where there are GPUs, each process takes the GPU of its local rank. A process that was started
    alone, or has joined already, does nothing. timeout: how long a process waits for another one,
    now and later.

    Raises:
        ValueError: the processes cannot reach one another.
    """
    global _rank, _size
    slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if slurm and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)

    if _size > 1 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return

    import torch  # imported here, because a run of one process should not wait for it
    from torch import distributed

    backend = "gloo"
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % gpus)
        backend = "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the {os.environ['WORLD_SIZE']} processes of this run cannot be connected ({why})"
        ) from error

    _rank = distributed.get_rank()
    _size = distributed.get_world_size()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C shows no traceback of each process
    atexit.register(leave)


def leave() -> None:
    """Disconnect from the other processes, once all of them are at their end."""
    global _rank, _size
    if _size == 1:
        return
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
    """Return whether this is rank 0, which alone logs and writes files.

    This is known before the processes are connected.
    """
    return _alone or int(os.environ.get("RANK", 0)) == 0


def name() -> str:
    """Return the name of this process in error messages."""
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
    """Return a subfolder of `path` for the files of this process alone."""
    if size() == 1:
        return path
    return path / f"rank-{rank()}"


def own_share(items: Iterable[T]) -> list[T]:
    """Return the items that this process works on.

    They are dealt out in a zigzag, so that items of similar size beside one another are on
    different processes.
    """
    return [item for k, item in enumerate(items) if _owner(k) == rank()]


def gather_in_order(own: Sequence[T]) -> list[T]:
    """Return the results of all processes, in the order that the items had before `own_share`.

    own: the results of this process, in the order of its share.
    """
    parts = gather(own)
    total = sum(len(part) for part in parts)
    results = [iter(part) for part in parts]
    return [next(results[_owner(k)]) for k in range(total)]


def each_by_one(makes: Iterable[Callable[[], T]]) -> list[T]:
    """Call each function in one of the processes, and return all results in order."""
    return gather_in_order([make() for make in own_share(makes)])


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks.

    Tensors inside the values are on the CPU.
    """
    if size() == 1:
        return [value]
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    values: list[Any] = [None] * size()
    _call("all_gather_object", values, tree_map_only(Tensor, Tensor.cpu, value))
    return values


def add_up(tensor: "Tensor") -> None:
    """Replace a tensor by the sum of the tensors of all processes.

    They are added in the order of the ranks, so that all processes have equal bits.
    """
    if size() == 1:
        return
    # NCCL sends from one GPU of each process, which need not be the GPU of the tensor
    sent = tensor.cuda() if tensor.is_cuda else tensor.cpu()
    parts = [sent.new_empty(sent.shape) for _ in range(size())]
    _call("all_gather", parts, sent)
    tensor.copy_(parts[0])
    for part in parts[1:]:
        tensor += part.to(tensor.device)


def on_first(make: Callable[[], T]) -> T:
    """Call a function in rank 0 alone, and return its result in all processes.

    Tensors in the result must be on the CPU.

    Raises:
        AgreedError: the function failed. All processes raise it.
    """
    if size() == 1:
        return make()

    value = None
    reason = None
    failed: Exception | None = None
    if is_first():
        try:
            with alone():
                value = make()
        except ValueError as error:
            failed = error
            reason = str(error)
        except Exception as error:
            failed = error
            reason = f"{type(error).__name__}: {error}"

    sent: list[Any] = [value, reason]
    _call("broadcast_object_list", sent)  # the other processes get what rank 0 sends
    value_of_first, reason_of_first = sent
    if reason_of_first is not None:
        raise AgreedError(reason_of_first) from failed
    return cast(T, value_of_first)


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that all processes call, so that rank 0 alone runs it; see `on_first`."""

    @wraps(function)
    def call(*given: P.args, **options: P.kwargs) -> T:
        return on_first(partial(function, *given, **options))

    return call


@contextmanager
def held_by_first(context: AbstractContextManager[T]) -> Iterator[T]:
    """Enter a context in rank 0 alone, and hold it until all processes are at the end of the block.

    Yields what the context gives, in all processes.
    """
    with ExitStack() as stack:
        yield on_first(partial(stack.enter_context, context))
        barrier()


def agreed(make: Callable[[], T]) -> T:
    """Call a function in all processes, and return its result.

    If one process refuses its input, all do.

    Raises:
        AgreedError: the reason of the lowest rank that refused its input. It begins with the name
            of the process, unless this is rank 0.
    """
    if size() == 1:
        return make()

    value = None
    refusal = None
    try:
        value = make()
    except ValueError as error:
        refusal = str(error) if is_first() else f"{name()}: {error}"

    for line in gather(refusal):
        if line:
            raise AgreedError(line)
    return cast(T, value)


def barrier() -> None:
    """Wait until all processes have come to this call."""
    gather(None)


def _owner(item: int) -> int:
    """Return the rank that works on an item: 0, 1, 1, 0, 0, 1, … with two processes."""
    row, column = divmod(item, size())
    backwards = row % 2 == 1
    return size() - 1 - column if backwards else column


def _call(operation: str, *given: Any) -> None:
    """Call a collective operation of torch.distributed."""
    from torch import distributed

    try:
        getattr(distributed, operation)(*given)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise LostError(f"another process has ended, or does not answer ({why})") from error
