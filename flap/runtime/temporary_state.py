"""Context managers that temporarily change random states, attributes and forward passes."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy
import torch
from torch import nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch in a `with` block, and restore their states afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(numpy.random.set_state, numpy.random.get_state())
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        yield


@contextmanager
def replaced(name: str, value: Any, *holders: Any) -> Iterator[None]:
    """Set the attribute `name` of each object in `holders` to `value` in a `with` block."""
    with ExitStack() as stack:
        for holder in holders:
            stack.callback(setattr, holder, name, getattr(holder, name))
            setattr(holder, name, value)
        yield


@contextmanager
def forwards_replaced(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward pass of each module by `forward(index, …)` in a `with` block.

    forward: called with the index of the module in `modules`, and then with the arguments of the
        forward pass.
    """
    modules = list(modules)
    forwards = [vars(module).get("forward") for module in modules]
    for index, module in enumerate(modules):
        module.forward = partial(forward, index)
    try:
        yield
    finally:
        for module, before in zip(modules, forwards, strict=True):
            del module.forward
            # restore a `forward` that was an attribute of the module, as accelerate's hooks set it
            if before is not None:
                module.forward = before
