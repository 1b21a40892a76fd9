"""A device made in Python, "second:0".

Its values are real and computed on the CPU. It refuses what a GPU refuses: an operation on its
tensors and CPU tensors together. Numbers in tensors without dimensions and indices may be on the
CPU, as beside a GPU, and `.numpy()` needs `.cpu()` first. Importing this module registers the
device for the whole process, which cannot be undone.

It has no kernels of its own, so it cannot say whether a type or an operation is missing on another
device (float64 on mps), and it has no generator, no streams and no memory of its own. Operations
that give a tensor another shape in place are refused. `torch.tensor(..., device="second:0")` does
not work. transformers' key-value cache needs it, so models run with `use_cache=False` alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "second"
HOST = torch.device("cpu")

# These operations take indices on the CPU while the first argument is on the device, as on a GPU.
TAKE_CPU_INDICES = {
    "aten::index",
    "aten::_unsafe_index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
}
# These operations do not even take numbers in CPU tensors without dimensions.
JOIN = {"aten::cat", "aten::stack"}


class OnSecond(Tensor):
    """A tensor on the second device. host: its values, an ordinary CPU tensor."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool | None = None) -> Any:
        """Wrap a CPU tensor, without a copy.

        With `requires_grad` return a parameter instead, on the device of the tensor, whichever it
        is: accelerate makes a new parameter by calling the class of the old one.
        """
        if requires_grad is not None:
            return torch.nn.Parameter(host, requires_grad)
        made: OnSecond = Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        made.host = host
        return made

    def __init__(self, *given: Any, **options: Any) -> None:
        """Do nothing: `__new__` has done it."""

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.host!r} on {NAME}:0"

    def __format__(self, spec: str) -> str:
        return format(self.host, spec) if self.dim() == 0 else repr(self)

    def tolist(self) -> Any:
        """Return the values as numbers in lists."""
        return self.host.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the storage of the values, whose address tells tied tensors from others."""
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        """Return the address of the values, by which accelerate knows tied tensors."""
        return self.host.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone()
        memo[id(self)] = copied = (
            torch.nn.Parameter(copied, self.requires_grad)
            if isinstance(self, torch.nn.Parameter)
            else copied
        )
        return copied

    @property
    def data(self) -> Tensor:
        """The tensor without its history."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        """Take the values of another tensor of this device and of the same shape."""
        if (
            not isinstance(other, OnSecond)
            or other.shape != self.shape
            or other.dtype != self.dtype
        ):
            raise RuntimeError(
                f"data: expected a tensor of {tuple(self.shape)}, {self.dtype} on {NAME}:0"
            )
        self.host = other.host

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run an operation that has a tensor of this device among its arguments."""
        return run(func, args, dict(kwargs or {}))


def run(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run an operation on the values in CPU tensors, after a check that a GPU would run it."""
    name = func._schema.name
    if name == "aten::copy_":  # between any two devices
        _host(args[0]).copy_(_host(args[1]))
        return args[0]
    if name == "aten::_to_copy":
        return _moved(func, args[0], options)
    tensors = list(_tensors((*args, *options.values())))
    ours = [one for one in tensors if isinstance(one, OnSecond)]
    _check_together(name, args, tensors, ours)
    shapes = [one.host.shape for one in ours]
    on_host = {key: _host(option) for key, option in options.items()}
    result = WITHOUT_CPU_KERNEL.get(name, func)(*_host(args), **on_host)
    if any(one.host.shape != shape for one, shape in zip(ours, shapes, strict=True)):
        raise RuntimeError(
            f"{name}: it gives a tensor another shape in place, which {NAME}:0 cannot"
        )
    return _wrapped(result, {id(one.host): one for one in ours})


def _check_together(
    name: str, args: tuple[Any, ...], tensors: Sequence[Tensor], ours: Sequence[Tensor]
) -> None:
    """Raise an error if an operation mixes tensors of two devices where a GPU would not take it."""
    if len(ours) in (0, len(tensors)):
        return
    if name in TAKE_CPU_INDICES and isinstance(args[0], OnSecond):
        tensors = list(_tensors(args[2:]))
    if any(not isinstance(one, OnSecond) and (one.dim() > 0 or name in JOIN) for one in tensors):
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, found at least cpu "
            f"and {NAME}:0"
        )


def _moved(func: Any, tensor: Tensor, options: dict[str, Any]) -> Tensor:
    """Return a copy of a tensor on the device in the options of `_to_copy`.

    Without a device in the options, the copy is on the device of the tensor.
    """
    device = torch.device(options.pop("device", None) or tensor.device)
    copied: Tensor = func(_host(tensor), **options, device="cpu" if device.type == NAME else device)
    return OnSecond(copied) if device.type == NAME else copied


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, also those in lists."""
    for one in arguments:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from _tensors(one)


def _host(one: Any) -> Any:
    """Return the values of a tensor of this device, and anything else as it is.

    The CPU takes the place of this device.
    """
    if isinstance(one, OnSecond):
        return one.host
    if isinstance(one, list | tuple):
        return type(one)(map(_host, one))
    return HOST if isinstance(one, torch.device) and one.type == NAME else one


def _wrapped(result: Any, known: dict[int, "OnSecond"]) -> Any:
    """Return the results of an operation as tensors of this device.

    An operation in place returns what it was given.
    """
    if isinstance(result, list | tuple):
        return type(result)(_wrapped(one, known) for one in result)
    if not isinstance(result, Tensor):
        return result
    return known[id(result)] if id(result) in known else OnSecond(result)


def _count(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
    """Count whole numbers with `histc`, as CUDA does; on the CPU it takes floats only."""
    return torch.histc(tensor.float(), *args, **options).to(tensor.dtype)


WITHOUT_CPU_KERNEL: dict[str, Callable[..., Any]] = {"aten::histc": _count}

backend_registration._setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
# torch's gradient checkpointing asks each device for its types of mixed precision, whichever one it
# runs on.
torch.second.get_amp_supported_dtype = lambda: [torch.bfloat16]
# Register functions without a tensor among their arguments, such as `torch.zeros`. The libraries
# are kept in names, because the registrations end when these objects are freed.
_fallbacks = torch.library.Library("_", "IMPL")
_fallbacks.fallback(lambda func, *args, **options: run(func, args, options), "PrivateUse1")
_factories = torch.library.Library("aten", "IMPL")
for _overload in (
    "arange",
    "arange.start",
    "arange.start_step",  # torch's implementations resize an empty tensor, which is refused here
):
    _factories.impl(
        _overload,
        lambda *args, **options: OnSecond(torch.arange(*args, **options | {"device": "cpu"})),
        "PrivateUse1",
    )
