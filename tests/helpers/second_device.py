"""A torch device "second:0" that is simulated in Python.

Unlike tensors on the meta device, the tensors of this device have values, which are computed on the
CPU. Like a GPU, the device refuses operations that mix its tensors with CPU tensors, and `.numpy()`
without `.cpu()`. As with a GPU, indices and tensors without dimensions may be on the CPU. Importing
this module registers the device for the whole process, which cannot be undone.

The device has no kernels, random generator, streams or memory. So this device cannot show whether a
real device lacks a type or an operation (as mps lacks float64). The device refuses operations that
change the shape of a tensor in place. The call `torch.tensor(..., device="second:0")` does not
work. transformers' key-value cache needs this call, so models run only with `use_cache=False`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "second"
HOST = torch.device("cpu")

# As on a GPU, these operations accept CPU indices if the first argument is on the device.
TAKE_CPU_INDICES = {
    "aten::index",
    "aten::_unsafe_index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
}
# As on a GPU, these operations refuse all CPU tensors, even those without dimensions.
JOIN = {"aten::cat", "aten::stack"}


class OnSecond(Tensor):
    """A tensor on the second device.

    host: the CPU tensor that holds the values.
    """

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool | None = None) -> Any:
        """Wrap a CPU tensor without copying it.

        If `requires_grad` is given, return `host` itself as a parameter. accelerate needs this,
        because it creates a parameter by calling the class of an existing parameter.
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
        """Do nothing, because `__new__` has already set all attributes."""

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.host!r} on {NAME}:0"

    def __format__(self, spec: str) -> str:
        return format(self.host, spec) if self.dim() == 0 else repr(self)

    def tolist(self) -> Any:
        """Return the values as numbers in lists."""
        return self.host.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the storage of the values. Tied tensors have storages with the same address."""
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        """Return the address of the values, which accelerate compares to find tied tensors."""
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
        """The tensor without its autograd history."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        """Replace the values by those of another tensor of this device with the same shape."""
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
        return run(func, args, dict(kwargs or {}))


def run(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Check that a GPU would accept the operation, and then run it on the CPU values."""
    name = func._schema.name
    if name == "aten::copy_":  # copies are allowed between any two devices
        _host(args[0]).copy_(_host(args[1]))
        return args[0]
    if name == "aten::_to_copy":
        return _moved(func, args[0], options)
    tensors = list(_tensors_in((*args, *options.values())))
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
    """Raise an error if an operation mixes tensors of two devices in a way that a GPU refuses."""
    if len(ours) in (0, len(tensors)):
        return
    if name in TAKE_CPU_INDICES and isinstance(args[0], OnSecond):
        tensors = list(_tensors_in(args[2:]))
    if any(not isinstance(one, OnSecond) and (one.dim() > 0 or name in JOIN) for one in tensors):
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, found at least cpu "
            f"and {NAME}:0"
        )


def _moved(func: Any, tensor: Tensor, options: dict[str, Any]) -> Tensor:
    """Copy a tensor to the device that the options of `_to_copy` name.

    If the options name no device, the copy stays on the device of the tensor.
    """
    device = torch.device(options.pop("device", None) or tensor.device)
    copied: Tensor = func(_host(tensor), **options, device="cpu" if device.type == NAME else device)
    return OnSecond(copied) if device.type == NAME else copied


def _tensors_in(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for one in arguments:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from _tensors_in(one)


def _host(one: Any) -> Any:
    """Replace tensors of this device by their CPU values.

    Replace the device itself by the CPU, and return all other arguments unchanged.
    """
    if isinstance(one, OnSecond):
        return one.host
    if isinstance(one, list | tuple):
        return type(one)(map(_host, one))
    return HOST if isinstance(one, torch.device) and one.type == NAME else one


def _wrapped(result: Any, known: dict[int, "OnSecond"]) -> Any:
    """Convert the results of an operation to tensors of this device.

    The result of an in-place operation is one of its arguments, which is returned as it is.
    """
    if isinstance(result, list | tuple):
        return type(result)(_wrapped(one, known) for one in result)
    if not isinstance(result, Tensor):
        return result
    return known[id(result)] if id(result) in known else OnSecond(result)


def _count(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
    """Count integers with `histc`, as CUDA does; the CPU kernel accepts only floats."""
    return torch.histc(tensor.float(), *args, **options).to(tensor.dtype)


WITHOUT_CPU_KERNEL: dict[str, Callable[..., Any]] = {"aten::histc": _count}

backend_registration._setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
# torch's gradient checkpointing asks every registered device which types its autocast supports.
torch.second.get_amp_supported_dtype = lambda: [torch.bfloat16]
# Functions without tensor arguments, such as `torch.zeros`, must be registered for the device. The
# library objects are stored in variables, because a registration ends when its object is freed.
_fallbacks = torch.library.Library("_", "IMPL")
_fallbacks.fallback(lambda func, *args, **options: run(func, args, options), "PrivateUse1")
_factories = torch.library.Library("aten", "IMPL")
# torch's own versions of `arange` resize an empty tensor, which this device refuses.
for _overload in (
    "arange",
    "arange.start",
    "arange.start_step",
):
    _factories.impl(
        _overload,
        lambda *args, **options: OnSecond(torch.arange(*args, **options | {"device": "cpu"})),
        "PrivateUse1",
    )
