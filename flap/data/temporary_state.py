"""Changes of what the caller, or another package, holds that last as long as a block: random states and attributes."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed python, numpy and torch for as long as the block lasts, and restore their states afterwards."""
    python, legacy_numpy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(seed)
            numpy.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(legacy_numpy)


@contextmanager
def replaced(name: str, value: Any, *holders: Any) -> Iterator[None]:
    """Give the attribute of this name another value in each of these objects for as long as the block lasts."""
    with ExitStack() as stack:
        for holder in holders:
            stack.callback(setattr, holder, name, getattr(holder, name))
            setattr(holder, name, value)
        yield
