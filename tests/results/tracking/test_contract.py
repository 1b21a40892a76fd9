"""A tracker, which sends a run's results to a service, must not change a run or make it fail.

The tests use the tracker for MLflow, and read the records back from an MLflow server.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flap.config import build, how_to_install
from flap.results import Report
from flap.results.tracking import JobInfo, MLflow, Tracking
from flap.results.tracking.base import summary
from flap.results.tracking.in_mlflow import legal_name
from flap.runtime.progress import progress
from tests.helpers.runs import composed
from tests.helpers.trackers import mlflow_server

JOB = JobInfo("outputs/today/tiny", "tiny", tags=("WIFV", "AL-AM"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return MLflow's client, connected to an MLflow server on this machine.

    Starting the server takes ten seconds of processor time.
    """
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        with mlflow_server(folder) as uri:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            yield MlflowClient(uri)


def run_of(client: Any, run_dir: Path) -> Any:
    """Return the only MLflow run that belongs to the folder of a run of flap."""
    experiment = client.get_experiment_by_name("flap").experiment_id
    [run] = [
        one for one in client.search_runs([experiment]) if one.data.params["folder"] == str(run_dir)
    ]
    return run


@pytest.fixture
def run_dir(tmp_path: Path, report: dict[str, Any]) -> Path:
    """Create the folder of a finished run, with its report.json."""
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


@pytest.fixture
def done(run_dir: Path) -> Report:
    return Report.load(run_dir / "report.json")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        one.getMessage()
        for one in caplog.records
        if one.name.startswith("flap.results.tracking") and one.levelno > 20
    ]


@pytest.mark.long
def test_it_has_the_numbers_the_layers_the_progress_and_the_report(
    client: Any,
    run_dir: Path,
    done: Report,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    MLflow().check()
    with MLflow().start({"ratio": 0.4, "eval": None}, run_dir, JOB) as tracked:
        list(progress(range(3), "calibrate", lambda item: 7))
        tracked.finish(done)
    said = capfd.readouterr()
    assert (warnings(caplog), said.out) == ([], "")
    assert [
        line for line in said.err.splitlines() if not line.startswith("calibrate ")
    ] == []  # nothing is printed except the run's progress
    run = run_of(client, run_dir)
    assert (run.data.params["ratio"], run.info.status) == ("0.4", "FINISHED")
    expected = {
        legal_name(name): value for name, value in summary(done).items() if value is not None
    }
    assert len(expected) > 20 and expected.items() <= (run.data.tags | run.data.metrics).items()
    assert client.get_metric_history(run.info.run_id, "progress/calibrate")[-1].value == 1.0
    assert (
        client.get_metric_history(run.info.run_id, "progress/calibrate/tokens_per_second")[-1].value
        > 0
    )
    files = Path(client.download_artifacts(run.info.run_id, ""))
    assert json.loads((files / "layers.json").read_text())["data"] == [
        [i, *done.layers_before[i].values(), *done.layers[i].values()]
        for i in range(len(done.layers))
    ]
    assert (files / "report.json").read_bytes() == (run_dir / "report.json").read_bytes()


@pytest.mark.long
def test_a_job_started_again_is_one_run(
    client: Any, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="no memory"), MLflow().start({"ratio": 0.4}, run_dir, JOB):
        raise ValueError("no memory")
    assert run_of(client, run_dir).info.status == "FAILED"
    with MLflow().start({"ratio": 0.4}, run_dir, JOB):
        pass
    assert run_of(client, run_dir).info.status == "FINISHED" and warnings(caplog) == []


def test_a_missing_server_or_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build("tracking", composed("tracking=mlflow").tracking, Tracking) == MLflow()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        ValueError, match=r"^tracking\.uri=None: expected a server, as http://127\.0\.0\.1:5000, or"
    ):
        MLflow().check()
    monkeypatch.setattr("flap.results.tracking.in_mlflow.find_spec", lambda name: None)
    with pytest.raises(ValueError) as caught:
        MLflow().check()
    assert (
        str(caught.value)
        == f"tracking=mlflow: the package is not installed; {how_to_install('mlflow')}"
    )


def test_a_server_that_is_away_costs_seconds_and_one_warning(
    run_dir: Path, done: Report, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with MLflow("http://127.0.0.1:9").start({}, run_dir, JOB) as tracked:
        tracked.finish(done)
    [warning] = warnings(caplog)
    assert warning.startswith("MLflow: ") and "127.0.0.1" in warning
