"""The processes of a run. torchrun or SLURM starts one process per device.

`own_share` divides items among the processes, and `gather_in_order` collects the results.
`add_up` sums tensors over processes. `on_first` and `by_first` call a function only in rank 0. All
processes must make the same calls in the same order. In a run with one process, all of these
functions work without torch.distributed.
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
    """Raised if another process of the run has ended, or does not answer within the timeout."""


class AgreedError(ValueError):
    """An error that all processes of a run raise at the same time."""


def join(timeout: timedelta) -> None:
    """Connect this process with the other processes of the run.

    If there are GPUs, take the GPU of the local rank. Do nothing if the run has one process, or if
    this process is connected already. Each later call waits at most `timeout` for other processes.

    Raises:
        ValueError: the processes cannot connect.
    """
    global _rank, _size
    slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if slurm and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)

    if _size > 1 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return

    import torch  # imported here, so that a run with one process does not wait for this import
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
    # after Ctrl-C, no process should print a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    atexit.register(leave)


def leave() -> None:
    """Wait until all processes have finished, and disconnect."""
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
    """Return the rank of this process."""
    return 0 if _alone else _rank


def size() -> int:
    """Return the number of processes."""
    return 1 if _alone else _size


def is_first() -> bool:
    """Return whether this process is rank 0.

    Only rank 0 logs and writes files, except for files in the `own_folder` of each process.

    This function also works before the processes are connected, because the environment variable
    RANK contains the rank.
    """
    return _alone or int(os.environ.get("RANK", 0)) == 0


def name() -> str:
    """Return the name of this process for error messages."""
    return f"rank {_rank} on {platform.node()}"


@contextmanager
def alone() -> Iterator[None]:
    """In a `with` block, let the functions of this module behave as in a run with one process."""
    global _alone
    before = _alone
    _alone = True
    try:
        yield
    finally:
        _alone = before


def own_folder(path: Path) -> Path:
    """Return a folder for files of this process only.

    This is a subfolder of `path`, or in a run with one process, `path` itself.
    """
    if size() == 1:
        return path
    return path / f"rank-{rank()}"


def own_share(items: Iterable[T]) -> list[T]:
    """Return the items that this process works on, out of all items.

    Items are dealt out in a zigzag: with two processes, to ranks 0, 1, 1, 0, 0, 1, … If the items
    are sorted by size, all processes therefore get about the same amount of work.
    """
    return [item for k, item in enumerate(items) if _owner(k) == rank()]


def gather_in_order(own: Sequence[T]) -> list[T]:
    """Return the results for all items, in the order that the items had before `own_share`.

    own: the results of this process, in the order in which `own_share` has returned the items.
    """
    parts = gather(own)
    total = sum(len(part) for part in parts)
    results = [iter(part) for part in parts]
    return [next(results[_owner(k)]) for k in range(total)]


def each_by_one(makes: Iterable[Callable[[], T]]) -> list[T]:
    """Divide functions among the processes, and return the results of all functions in order.

    Each function is called once, by one process.
    """
    return gather_in_order([make() for make in own_share(makes)])


def gather(value: T) -> list[T]:
    """Return a list with the values of all processes in the order of ranks.

    If the run has several processes, tensors in the returned values are on the CPU.
    """
    if size() == 1:
        return [value]
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    values: list[Any] = [None] * size()
    _call_collective("all_gather_object", values, tree_map_only(Tensor, Tensor.cpu, value))
    return values


def add_up(tensor: "Tensor") -> None:
    """Replace a tensor by the sum of the tensors of all processes.

    Tensors are added in the order of ranks, so that all processes get exactly the same sum.
    """
    if size() == 1:
        return
    # NCCL sends tensors only from the current GPU of each process, but this tensor may be on
    # another GPU
    sent = tensor.cuda() if tensor.is_cuda else tensor.cpu()
    parts = [sent.new_empty(sent.shape) for _ in range(size())]
    _call_collective("all_gather", parts, sent)
    tensor.copy_(parts[0])
    for part in parts[1:]:
        tensor += part.to(tensor.device)


def on_first(make: Callable[[], T]) -> T:
    """Call a function only in rank 0, and return its result in all processes.

    Tensors in the result must be on the CPU.

    Raises:
        AgreedError: the function has failed in a run with several processes. All processes raise
            this error.
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
    # the other processes receive the value of rank 0
    _call_collective("broadcast_object_list", sent)
    value_of_first, reason_of_first = sent
    if reason_of_first is not None:
        raise AgreedError(reason_of_first) from failed
    return cast(T, value_of_first)


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that only rank 0 runs it when all processes call it (`on_first`)."""

    @wraps(function)
    def call(*given: P.args, **options: P.kwargs) -> T:
        return on_first(partial(function, *given, **options))

    return call


@contextmanager
def held_by_first(context: AbstractContextManager[T]) -> Iterator[T]:
    """Enter a context only in rank 0, and leave it when all processes have finished the block.

    All processes get the value that the context yields.
    """
    with ExitStack() as stack:
        yield on_first(partial(stack.enter_context, context))
        barrier()


def agreed(make: Callable[[], T]) -> T:
    """Call a function in all processes, and return its result.

    If the function raises a ValueError in one process, all processes raise an AgreedError.

    Raises:
        AgreedError: the function has raised a ValueError in at least one process. The message comes
            from the ValueError of the lowest rank that raised one. If this rank is not 0, the
            message begins with the name of the process.
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
    """Wait until all processes have reached this call."""
    gather(None)


def _owner(item: int) -> int:
    """Return the rank that works on the item with this index."""
    row, column = divmod(item, size())
    backwards = row % 2 == 1
    return size() - 1 - column if backwards else column


def _call_collective(operation: str, *given: Any) -> None:
    from torch import distributed

    try:
        getattr(distributed, operation)(*given)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise LostError(f"another process has ended, or does not answer ({why})") from error
