"""What a run takes: its operations as torch counts them, and the bytes of its tensors at their most, by stage."""

import math
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from flap.runs import Run

aten = torch.ops.aten
# What the counter has no formula for, by the shapes of what is given: products in place, factors, solves.
FORMULAS = {
    aten._grouped_mm: lambda left, right, *_, **__: 2 * math.prod(left) * right[-1],
    aten.addmm_: lambda out, left, right, **_: 2 * left[0] * left[1] * right[1],
    aten.linalg_cholesky_ex: lambda matrix, *_, **__: math.prod(matrix[:-2]) * matrix[-1] ** 3 / 3,
    aten.cholesky_inverse: lambda matrix, *_, **__: 2 / 3 * matrix[-1] ** 3,
    aten.cholesky_solve: lambda right, factor, *_, **__: 2 * math.prod(right) * factor[-1],
    aten.linalg_solve_triangular: lambda factor, right, *_, **__: math.prod(right) * factor[-1],
}


@dataclass
class Taken:
    """By the name of a stage."""

    stages: list[str] = field(default_factory=list)  # in their order
    operations: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    peak: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have returned and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self.see(tensor.untyped_storage())
        return found

    def see(self, storage: Any) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += num_bytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, key, num_bytes)

    def drop(self, key: int, num_bytes: int) -> None:
        self.known.discard(key)
        self.now -= num_bytes


@contextmanager
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    """Measure the stages of runs inside the block."""
    found, stage_of_run = Taken(), Run.stage
    with sdpa_kernel(SDPBackend.MATH), Live() as live, FlopCounterMode(display=False, custom_mapping=FORMULAS) as flops:

        def stage(run: Run, stage: Any, *inputs: Any) -> Any:
            live.peak, before = live.now, flops.get_total_flops()
            found.stages.append(stage.name)
            result = stage_of_run(run, stage, *inputs)
            found.operations[stage.name] += flops.get_total_flops() - before
            found.peak[stage.name] = max(found.peak[stage.name], live.peak)
            return result

        monkeypatch.setattr(Run, "stage", stage)
        yield found
