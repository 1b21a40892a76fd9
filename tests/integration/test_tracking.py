"""`tracking=wandb` on the command line: one W&B run a job, whose numbers are the report's.

test_launchers.py has the other launchers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from flap.results import Report
from flap.tracking import summary
from tests.helpers.runs import tiny
from tests.helpers.wandb_records import recorded

Cli = Callable[..., "CompletedProcess[str]"]


def test_one_run_a_job_and_after_a_failed_one(
    quick_flap: Cli, model_dir: Path, text_file: Path, tmp_path: Path, no_account: dict[str, str]
) -> None:
    sweep = tmp_path / "sweeps" / "mine"
    options = ["checkpoint.save=false", "tracking=wandb", f"hydra.sweep.dir={sweep}"]
    done = quick_flap("-m", *tiny(model_dir, text_file), *options, "calibration.num_samples=9999,8", **no_account)
    assert done.returncode == 1 and done.stderr.count("failed: ") == 1
    failed, finished = (recorded(folder) for folder in sorted(sweep.glob("[01]_*")))
    assert failed.exit_code != 0 and finished.exit_code == 0
    assert failed.run.run_id != finished.run.run_id
    assert {failed.run.run_group, finished.run.run_group} == {"mine"}
    assert {failed.run.job_type, finished.run.job_type} == {"sweep"}
    assert list(finished.run.tags) == ["WIFV", "AL-AM"]
    assert [one.config["calibration"]["num_samples"] for one in (failed, finished)] == [9999, 8]
    [path] = sweep.glob("1_*/report.json")
    for name, value in summary(Report.load(path)).items():
        assert finished.summary[name] == value, name
    study = recorded(sweep)
    assert (study.run.run_group, study.run.job_type) == ("mine", "study")
    table = study.table("study")
    assert [row[table["columns"].index("state")] for row in table["data"]] == ["finished", "failed"]
    assert done.stderr.count("wandb sync") + done.stdout.count("wandb sync") >= 1


def test_online_without_a_key_is_one_line(
    quick_flap: Cli, model_dir: Path, text_file: Path, tmp_path: Path, no_account: dict[str, str]
) -> None:
    done = quick_flap(*tiny(model_dir, text_file), "tracking=wandb", "tracking.mode=online", **no_account)
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: tracking.mode=online: no W&B key is configured; run `wandb login`")
    [status] = tmp_path.glob("outputs/*/*/status.json")
    assert json.loads(status.read_text())["state"] == "failed"
