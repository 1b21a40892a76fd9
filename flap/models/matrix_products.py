"""Matrix products in float32 of a model in bfloat16, for processors on which products in bfloat16 are slow."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FAST = ("amx_bf16", "avx512_bf16", "bf16")  # what a processor has that multiplies bfloat16: Intel, AMD and Intel, ARM
PRODUCTS = {
    functional.linear, functional.scaled_dot_product_attention, torch.addmm, torch.baddbmm, torch.bmm, torch.mm,
    torch.matmul, Tensor.addmm, Tensor.baddbmm, Tensor.bmm, Tensor.mm, Tensor.matmul, Tensor.__matmul__,
}  # fmt: skip
FEWEST_ROWS = 32  # of fewer rows, as in decoding, the weights take longer to convert than to multiply


def compute_dtype(
    dtype: torch.dtype, device: torch.device, capabilities: Mapping[str, Any] | None = None
) -> torch.dtype:
    """Return the type in which the products of a model of this type are fast on a device.

    It is the model's own, but float32 for bfloat16 on a processor that has no instruction for it: on one with AVX-512
    alone they were 4.4 times as fast. capabilities: of the processor, as torch names them; None: of this one. Where
    torch tells none, the type stays.
    """
    known = getattr(torch.cpu, "get_capabilities", dict)() if capabilities is None else capabilities
    slow = bool(known) and not any(known.get(name) for name in FAST)
    return torch.float32 if dtype == torch.bfloat16 and device.type == "cpu" and slow else dtype


def products_in(dtype: torch.dtype, model: torch.dtype) -> AbstractContextManager[Any]:
    """Compute the products of a model of type `model` in another one inside the block; the results have its own again.

    Weights and activations stay as they are, so that memory and checkpoints are those of the model's type.
    """
    return nullcontext() if dtype == model else _Float32Products()


class _Float32Products(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or not _worth_it([one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]):
            return func(*args, **kwargs)
        return func(*map(_widened, args), **{name: _widened(one) for name, one in kwargs.items()}).bfloat16()


def _worth_it(tensors: Sequence[Tensor]) -> bool:
    """Return whether a product of these is to be computed in float32. Autocast, of a training, has types of its own."""
    rows = next((one.numel() // max(1, one.shape[-1]) for one in tensors if one.ndim > 1), 0)  # not of a bias
    types = {one.dtype for one in tensors} - {torch.bool}
    return types == {torch.bfloat16} and rows >= FEWEST_ROWS and not torch.is_autocast_enabled("cpu")


def _widened(one: Any) -> Any:
    return one.float() if isinstance(one, Tensor) and one.dtype == torch.bfloat16 else one
