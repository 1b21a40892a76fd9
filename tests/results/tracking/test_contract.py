"""What every tracker is asked for, and no tracker may do to a run; MLflow is read back from its server."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from flap.config import build, how_to_install
from flap.results import Report
from flap.results.tracking import JobInfo, MLflow, TrackedRun, Tracking
from flap.results.tracking.base import RunInTracker, layer_rows, summary
from flap.results.tracking.in_mlflow import legal_name
from flap.storage.progress import progress
from tests.helpers.runs import composed
from tests.helpers.trackers import InMLflow, mlflow_server

JOB = JobInfo("outputs/today/tiny", "tiny", tags=("WIFV", "AL-AM"))


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InMLflow]:
    """MLflow, which reaches nothing but its server on this machine, whose start takes ten seconds of a processor."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        with mlflow_server(folder) as uri:
            yield InMLflow(uri)


@pytest.fixture
def run_dir(tmp_path: Path, report: dict[str, Any]) -> Path:
    """The folder of a finished run."""
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


@pytest.fixture
def done(run_dir: Path) -> Report:
    return Report.load(run_dir / "report.json")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        one.getMessage() for one in caplog.records if one.name.startswith("flap.results.tracking") and one.levelno > 20
    ]


@pytest.mark.long
def test_a_tracker_has_the_numbers_the_layers_the_progress_and_the_report(
    tracker: InMLflow, run_dir: Path, done: Report, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker.tracking.check()
    with tracker.tracking.start({"ratio": 0.4, "eval": None}, run_dir, JOB) as tracked:
        list(progress(range(3), "calibrate", lambda item: 7))
        tracked.finish(done)
    said = capfd.readouterr()
    assert (warnings(caplog), said.out) == ([], "")
    assert [line for line in said.err.splitlines() if not line.startswith("calibrate ")] == []  # the run's own bar
    seen = tracker.seen(run_dir)
    assert seen.config["ratio"] == "0.4"
    expected = {legal_name(name): value for name, value in summary(done).items() if value is not None}
    assert len(expected) > 20 and {name: seen.summary[name] for name in expected} == expected
    assert seen.history["progress/calibrate"][-1] == 1.0
    assert seen.history["progress/calibrate/tokens_per_second"][-1] > 0
    assert seen.layers == layer_rows(done)
    assert seen.report == (run_dir / "report.json").read_bytes()
    assert not seen.failed


@pytest.mark.long
def test_a_job_started_again_is_one_run(tracker: InMLflow, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="no memory"), tracker.tracking.start({"ratio": 0.4}, run_dir, JOB):
        raise ValueError("no memory")
    assert tracker.seen(run_dir).failed
    with tracker.tracking.start({"ratio": 0.4}, run_dir, JOB):
        pass
    assert len(tracker.found(run_dir)) == 1 and not tracker.seen(run_dir).failed
    assert warnings(caplog) == []


@pytest.mark.long
def test_what_fails_in_a_tracker_is_one_warning(
    tracker: InMLflow, run_dir: Path, done: Report, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **options: Any) -> None:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr("mlflow.MlflowClient.log_batch", broken)
    with tracker.tracking.start({"ratio": 0.4}, run_dir, JOB) as tracked:
        list(progress(range(3), "calibrate"))
        tracked.finish(done)
    [warning] = warnings(caplog)
    assert warning.startswith(f"{tracker.tracking.name}: RuntimeError: no luck; the run goes on")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build("tracking", composed("tracking=mlflow").tracking) == MLflow()
    monkeypatch.setattr("flap.results.tracking.in_mlflow.find_spec", lambda name: None)
    with pytest.raises(ValueError) as caught:
        MLflow().check()
    assert str(caught.value) == f"tracking=mlflow: the package is not installed; {how_to_install('mlflow')}"


@dataclass(frozen=True)
class Own(Tracking):
    """Somebody's own tracker, which gives its runs to a Mock."""

    place: str = ""

    def check(self) -> None:
        """Allow everything."""

    def open(self, config: dict[str, Any], job: JobInfo, run: TrackedRun) -> RunInTracker:
        """Return what notes its calls."""
        return Mock(spec=RunInTracker, place=self.place)


def test_a_tracker_of_ones_own_is_named_by_its_class(run_dir: Path, done: Report) -> None:
    own = build("tracking", composed(f"tracking._target_={__name__}.Own", "+tracking.place=here").tracking)
    with own.start({}, run_dir, JOB) as tracked:
        tracked.finish(done)
    assert tracked.there.place == "here"
    names = [name for name, *_ in tracked.there.mock_calls]
    assert names == ["summarize", "log_table", "log_files", "log_lineage", "finish"]


def test_mlflow_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"^tracking\.uri=None: expected a server, as http://127\.0\.0\.1:5000, or"):
        MLflow().check()


def test_a_server_that_is_away_costs_seconds_and_one_warning(
    run_dir: Path, done: Report, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with MLflow("http://127.0.0.1:9").start({}, run_dir, JOB) as tracked:
        tracked.finish(done)
    [warning] = warnings(caplog)
    assert warning.startswith("MLflow: ") and "127.0.0.1" in warning
