"""A user's own tracker class, named on the command line, gets the results of a sweep's runs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from flap.results import Report
from flap.results.tracking import JobInfo, TrackedRun, Tracking
from flap.results.tracking.base import RunInTracker, summary
from flap.storage import read_json
from tests.cases import tiny_model

Cli = Callable[..., "CompletedProcess[str]"]


@dataclass(frozen=True)
class Noting(Tracking):
    """A tracker that writes the data it received into the run's folder when the run ends."""

    file: str = ""

    def check(self) -> None:
        """Accept all options."""

    def open(self, config: dict[str, Any], job: JobInfo, run: TrackedRun) -> RunInTracker:
        """Return a mock that writes its calls to `file` when the run ends."""
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


@pytest.fixture
def bad_model(model_dir: Path, tmp_path: Path) -> Path:
    """Save a model with NaN in its weights.

    A run on this model fails, but only after its inputs were checked.
    """
    path = tmp_path / "bad"
    shutil.copytree(model_dir, path)
    model = tiny_model("llama-gqa")
    model.model.layers[2].mlp.up_proj.weight.data[:] = torch.nan
    model.save_pretrained(path)
    return path


def assert_job(noted: dict[str, Any], model: Path, failed: bool) -> None:
    assert noted["failed"] == failed
    assert noted["job"]["group"] == "mine"
    assert noted["job"]["job_type"] == "sweep"
    assert noted["config"]["model"]["path"] == str(model)


def assert_study(noted: dict[str, Any]) -> None:
    assert noted["job"]["group"] == "mine"
    assert noted["job"]["job_type"] == "study"
    assert not noted["failed"]
    name, columns, rows = noted["given"]["log_table"]
    assert name == "study"
    assert len(rows) == 2
    assert len(rows[0]) == len(columns)


@pytest.mark.long
def test_a_job_is_a_run_whatever_failed(
    quick_flap: Cli, base: list[str], model_dir: Path, bad_model: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweeps" / "mine"
    options = [
        f"tracking._target_={__name__}.Noting",
        "+tracking.file=noted.json",
        "checkpoint.save=false",
        f"hydra.sweep.dir={sweep}",
        f"model.path={bad_model},{model_dir}",
    ]
    done = quick_flap("-m", *base[1:], *options)
    assert done.returncode == 1
    assert done.stderr.count("error: cell 1 of 2: ") == 1

    failed, finished = (read_json(folder / "noted.json") for folder in sorted(sweep.glob("[01]_*")))
    assert_job(failed, bad_model, failed=True)
    assert_job(finished, model_dir, failed=False)
    assert failed["job"]["id"] != finished["job"]["id"]
    assert finished["job"]["tags"] == ["WIFV", "AL-AM"]
    choices = {"metric": "WIFV", "structure": "AL-AM", "method": "flap"}
    assert choices.items() <= finished["config"]["choices"].items()
    [path] = sweep.glob("1_*/report.json")
    numbers = json.dumps(summary(Report.load(path)))
    assert finished["given"]["summarize"] == [json.loads(numbers)]
    assert_study(read_json(sweep / "noted.json"))
