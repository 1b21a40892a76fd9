"""`tracking=wandb` on the command line: one W&B run a job, whose numbers are the report's."""

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import torch

from flap.results import Report
from flap.results.tracking.base import summary
from flap.storage import read_json
from tests.cases import tiny_model
from tests.helpers.wandb_notes import leave_notes

Cli = Callable[..., "CompletedProcess[str]"]


def test_one_run_a_job_and_after_a_failed_one(
    quick_flap: Cli, base: list[str], model_dir: Path, tmp_path: Path, no_account: dict[str, str]
) -> None:
    sweep, bad = tmp_path / "sweeps" / "mine", tmp_path / "bad"
    shutil.copytree(model_dir, bad)
    model = tiny_model("llama-gqa")
    model.model.layers[2].mlp.up_proj.weight.data[:] = torch.nan  # which is found in the midst of the work
    model.save_pretrained(bad)
    options = ["checkpoint.save=false", "tracking=wandb", f"hydra.sweep.dir={sweep}", f"model.path={bad},{model_dir}"]
    done = quick_flap("-m", *base[1:], *options, before=leave_notes, **no_account)
    assert done.returncode == 1 and done.stderr.count("failed: ") == 1
    failed, finished = (read_json(folder / "noted.json") for folder in sorted(sweep.glob("[01]_*")))
    assert failed["exit_code"] != 0 and finished["exit_code"] == 0 and failed["id"] != finished["id"]
    assert [(one["group"], one["job_type"]) for one in (failed, finished)] == [("mine", "sweep")] * 2
    assert finished["tags"] == ["WIFV", "AL-AM"]
    choices = finished["config"]["choices"]
    assert (choices["metric"], choices["structure"], choices["method"]) == ("WIFV", "AL-AM", "flap")
    assert [one["config"]["model"]["path"] for one in (failed, finished)] == [str(bad), str(model_dir)]
    [path] = sweep.glob("1_*/report.json")
    numbers = {name: value for name, value in summary(Report.load(path)).items() if value is not None}
    assert any(name.startswith("difference_p_value/") for name in numbers) and len(numbers) > 20
    assert numbers.items() <= finished["summary"].items()
    study = read_json(sweep / "noted.json")
    assert (study["group"], study["job_type"], study["exit_code"]) == ("mine", "study", 0)
    assert len([*sweep.glob("**/offline-run-*/run-*.wandb")]) == 3
    assert done.stderr.count("wandb sync") + done.stdout.count("wandb sync") >= 1
