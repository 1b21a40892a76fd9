"""Two seeded runs leave the same plan and weights, and the batch size decides nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flap.method.allocation import PruningPlan
from flap.results import Report


@pytest.mark.parametrize("choices", ["metric=random structure=UL-UM", "metric=WIFV structure=AL-AM", "method=wanda_sp"])
def test_two_seeded_runs_leave_the_same(tmp_path: Path, run_tiny: Callable[..., Report], choices: str) -> None:
    plans, weights = [], []
    for name in ("first", "second"):
        run_tiny(tmp_path / name, *choices.split(), "seed=3", "use_cache=false")
        plans.append((tmp_path / name / "plan.json").read_bytes())
        weights.append(load_file(tmp_path / name / "checkpoint" / "model.safetensors"))
    assert plans[0] == plans[1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_another_seed_leaves_another_plan(tmp_path: Path, run_tiny: Callable[..., Report]) -> None:
    for seed in (3, 4):
        run_tiny(tmp_path / str(seed), "metric=random", f"seed={seed}", "checkpoint.save=false")
    assert (tmp_path / "3" / "plan.json").read_bytes() != (tmp_path / "4" / "plan.json").read_bytes()


@pytest.mark.parametrize("structure", ["AL-AM", "search"])
@pytest.mark.parametrize("varied", ["batch", "threads"])
def test_threads_decide_one_unit(tmp_path: Path, run_tiny: Callable[..., Report], structure: str, varied: str) -> None:
    threads = torch.get_num_threads()
    units = []
    for n in (1, 2):
        batch = n + 1 if varied == "batch" else 3
        torch.set_num_threads(n if varied == "threads" else threads)
        options = [f"structure={structure}", f"calibration.batch_size={batch}", "checkpoint.save=false"]
        run_tiny(tmp_path / str(n), *options, "use_cache=false")
        layers = enumerate(PruningPlan.load(tmp_path / str(n) / "plan.json").layers)
        units.append({(i, kind, u) for i, one in layers for kind, kept in one._asdict().items() for u in kept})
    torch.set_num_threads(threads)
    assert len(units[0] - units[1]) <= 1
    assert len(units[1] - units[0]) <= 1
