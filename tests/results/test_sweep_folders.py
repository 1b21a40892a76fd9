"""How many cells a sweep will have, from Hydra's record of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from flap.results.sweep_folders import read_sweep

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def record(folder: Path, task: list[str], **sweeper: Any) -> Path:
    hydra = {"overrides": {"hydra": ["hydra.mode=MULTIRUN"], "task": task}, "sweeper": sweeper}
    (folder / "multirun.yaml").write_text(json.dumps({"hydra": hydra}))
    return folder


@pytest.mark.parametrize(
    "task, sweeper, planned",
    [
        (["metric=IFV,WIFV", "ratio=0.2,0.5", "seed=3", "eval=[perplexity,generate]"], {"_target_": BASIC}, 4),
        (["seed=range(5)", "'calibration.dataset={a: 1},{b: 1}'"], {"_target_": BASIC}, 0),  # not a whole override
        (["seed=range(5)", "calibration.dataset={a: 1},{b: 1}"], {"_target_": BASIC}, 10),
        (["ratio=0.3"], {"_target_": BASIC, "params": {"metric": "IFV,WIFN,WIFV", "ratio": "0.2,0.5"}}, 3),
        (["ratio=0.3"], {"_target_": BASIC}, 1),
        (["metric=glob(*)"], {"_target_": BASIC}, 0),
        (["ratio=0.2,0.5"], {"_target_": "hydra_plugins.optuna.Sweeper"}, 0),
    ],
)
def test_the_planned_cells_are_the_product_of_the_choices(
    tmp_path: Path, task: list[str], sweeper: dict[str, Any], planned: int
) -> None:
    assert read_sweep(record(tmp_path, task, **sweeper))[1] == planned


def test_without_a_record_nothing_is_known(tmp_path: Path) -> None:
    assert read_sweep(tmp_path) == ("", 0)
