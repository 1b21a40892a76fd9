"""MLflow's server on this machine alone, and what it has of a run."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flap.results.tracking import MLflow, Tracking


@dataclass
class Seen:
    """What the server has of one run."""

    config: dict[str, str]  # some values, by dotted names
    summary: dict[str, Any]
    history: dict[str, list[float]]
    layers: list[list[Any]]
    report: bytes
    failed: bool


class InMLflow:
    """MLflow's server on a port of this machine."""

    def __init__(self, uri: str) -> None:
        self.tracking: Tracking = MLflow(uri)
        self.uri = uri

    def found(self, run_dir: Path) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("flap").experiment_id
        return [run for run in client.search_runs([experiment]) if run.data.params["folder"] == str(run_dir)]

    def seen(self, run_dir: Path) -> Seen:
        from mlflow import MlflowClient

        [run], client = self.found(run_dir), MlflowClient(self.uri)
        files = Path(client.download_artifacts(run.info.run_id, ""))
        history = {
            name: [one.value for one in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
        }
        layers = json.loads((files / "layers.json").read_text())["data"] if (files / "layers.json").exists() else []
        report = (files / "report.json").read_bytes() if (files / "report.json").exists() else b""
        values = run.data.tags | run.data.metrics
        return Seen(run.data.params, values, history, layers, report, run.info.status == "FAILED")


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of MLflow's own server, which keeps everything in a folder, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", str(folder / "files"),
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "log"
    with log.open("w") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | quiet, start_new_session=True)
    try:
        _wait(server, uri, log)
        yield uri
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", uri: str, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health"):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"MLflow's server does not answer: {log.read_text()[-2000:]}")
