"""Calling a function instead of the forward pass of modules."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def forwards_replaced(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Call `forward(index, …)` instead of the forward pass of each module inside the block."""
    modules = list(modules)
    forwards = [vars(module).get("forward") for module in modules]
    for index, module in enumerate(modules):
        module.forward = partial(forward, index)
    try:
        yield
    finally:
        for module, before in zip(modules, forwards, strict=True):
            del module.forward
            if before is not None:  # set by accelerate's hooks
                module.forward = before
