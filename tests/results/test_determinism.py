"""With another number of threads, a plan keeps the same heads and neurons, apart from at most one.

This difference is possible because scores differ by rounding.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from flap.method.allocation import PruningPlan
from flap.results import Report


def test_threads_decide_one_unit(tmp_path: Path, run_tiny: Callable[..., Report]) -> None:
    threads = torch.get_num_threads()
    units = []
    for n in (1, 2):
        torch.set_num_threads(n)
        run_tiny(tmp_path / str(n), "structure=search", "checkpoint.save=false", "use_cache=false")
        layers = enumerate(PruningPlan.load(tmp_path / str(n) / "plan.json").layers)
        units.append(
            {
                (i, kind, u)
                for i, one in layers
                for kind, kept in one._asdict().items()
                for u in kept
            }
        )
    torch.set_num_threads(threads)
    assert len(units[0] - units[1]) <= 1
    assert len(units[1] - units[0]) <= 1
