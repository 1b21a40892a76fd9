"""Seed the random number generators of a run, without changing those of its caller."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

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
