"""A tracker of one's own on the command line: one run a job, whose numbers are the report's, and one of the sweep."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import Mock

import torch

from flap.results import Report
from flap.results.tracking import JobInfo, TrackedRun, Tracking
from flap.results.tracking.base import RunInTracker, summary
from flap.storage import read_json
from tests.cases import tiny_model

Cli = Callable[..., "CompletedProcess[str]"]


@dataclass(frozen=True)
class Noting(Tracking):
    """Leaves in the folder of a run what it was given, when the run ends."""

    file: str = ""

    def check(self) -> None:
        """Allow everything."""

    def open(self, config: dict[str, Any], job: JobInfo, run: TrackedRun) -> RunInTracker:
        """Return what notes its calls."""
        there = Mock(spec=RunInTracker)

        def note(failed: bool) -> None:
            given = {
                name: args
                for name, args, _ in there.mock_calls
                if name in ("summarize", "log_table")
            }
            noted = {"job": asdict(job), "config": config, "failed": failed, "given": given}
            (run.run_dir / self.file).write_text(json.dumps(noted, default=str))

        there.finish.side_effect = note
        return there


def test_a_job_is_a_run_whatever_failed(
    quick_flap: Cli, base: list[str], model_dir: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweeps" / "mine"
    bad = tmp_path / "bad"
    shutil.copytree(model_dir, bad)
    model = tiny_model("llama-gqa")
    model.model.layers[2].mlp.up_proj.weight.data[:] = (
        torch.nan
    )  # which is found in the midst of the work
    model.save_pretrained(bad)
    options = [
        f"tracking._target_={__name__}.Noting",
        "+tracking.file=noted.json",
        "checkpoint.save=false",
    ]
    done = quick_flap(
        "-m", *base[1:], *options, f"hydra.sweep.dir={sweep}", f"model.path={bad},{model_dir}"
    )
    assert done.returncode == 1 and done.stderr.count("failed: ") == 1
    failed, finished = (read_json(folder / "noted.json") for folder in sorted(sweep.glob("[01]_*")))
    assert (
        failed["failed"] and not finished["failed"] and failed["job"]["id"] != finished["job"]["id"]
    )
    assert [(one["job"]["group"], one["job"]["job_type"]) for one in (failed, finished)] == [
        ("mine", "sweep")
    ] * 2
    assert finished["job"]["tags"] == ["WIFV", "AL-AM"]
    choices = finished["config"]["choices"]
    assert (choices["metric"], choices["structure"], choices["method"]) == ("WIFV", "AL-AM", "flap")
    assert [one["config"]["model"]["path"] for one in (failed, finished)] == [
        str(bad),
        str(model_dir),
    ]
    [path] = sweep.glob("1_*/report.json")
    assert finished["given"]["summarize"] == [json.loads(json.dumps(summary(Report.load(path))))]
    study = read_json(sweep / "noted.json")
    assert (study["job"]["group"], study["job"]["job_type"], study["failed"]) == (
        "mine",
        "study",
        False,
    )
    name, columns, rows = study["given"]["log_table"]
    assert name == "study" and len(rows) == 2 and len(rows[0]) == len(columns)
