"""The tracker of the choice `tracking=mlflow`: a server, by the client of `mlflow-skinny`."""

import logging
import os
import re
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from flap.config import how_to_install, with_quoted_password
from flap.results import Report
from flap.results.configs import flat
from flap.results.tracking.base import JobInfo, RunInTracker, TrackedRun, Tracking, kept_id
from flap.results.tracking.login import environment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MLflow(Tracking):
    """Track runs with an MLflow server."""

    uri: str | None = (
        None  # of the server, as http://127.0.0.1:5000; None: MLFLOW_TRACKING_URI of the environment
    )
    experiment: str = "flap"  # of MLflow; made if it is not there

    name = "MLflow"

    def check(self) -> None:
        """Check that the client is installed and a server named; raises ValueError if not."""
        if find_spec("mlflow") is None:
            raise ValueError(
                f"tracking=mlflow: the package is not installed; {how_to_install('mlflow')}"
            )
        if not (self.uri or os.environ.get("MLFLOW_TRACKING_URI")):
            raise ValueError(
                "tracking.uri=None: expected a server, as http://127.0.0.1:5000, or MLFLOW_TRACKING_URI"
            )

    def surroundings(self, run_dir: Path) -> AbstractContextManager[None]:
        """Keep MLflow silent, and let a server that is away cost seconds, and not the minutes of seven retries."""
        return environment(
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="2", MLFLOW_HTTP_REQUEST_TIMEOUT="20", MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true", MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        )  # fmt: skip

    def open(self, config: dict[str, Any], job: JobInfo, run: TrackedRun) -> "MLflowRun":
        """Begin the run of a folder, or go on with it."""
        from mlflow import MlflowClient, MlflowException

        logging.getLogger("urllib3").setLevel(
            logging.ERROR
        )  # of a server that is away one warning is enough
        uri = self.uri or os.environ["MLFLOW_TRACKING_URI"]
        client = MlflowClient(with_quoted_password(uri))
        key = kept_id(run.run_dir / "mlflow", job.id)
        if not client.get_experiment_by_name(self.experiment):
            with suppress(MlflowException):  # another job may have made it meanwhile
                client.create_experiment(self.experiment)
        experiment = client.get_experiment_by_name(self.experiment).experiment_id
        tags = {
            "flap_id": key,
            "job_type": job.job_type,
            "tags": ", ".join(job.tags),
            "group": job.group or "",
        }
        earlier = client.search_runs([experiment], f"tags.flap_id = '{key}'")
        [begun] = earlier or [client.create_run(experiment, tags=tags, run_name=job.name)]
        there = MLflowRun(client, begun.info.run_id)
        client.update_run(there.id, "RUNNING")
        values = {
            legal_name(name): value
            for name, value in flat(config | {"folder": run.run_dir.resolve()}).items()
        }
        for name in values.keys() - begun.data.params.keys():  # which cannot be changed
            client.log_param(there.id, name, values[name])
        log.info("MLflow: run %s of the experiment %s", there.id, self.experiment)
        return there


@dataclass
class MLflowRun(RunInTracker):
    """A run in MLflow, whose server is told of progress by a thread of the client."""

    client: Any
    id: str
    sent: list[Any] = field(default_factory=list)

    def log(self, values: dict[str, float]) -> None:
        """Send numbers without waiting for the server."""
        self.sent.append(self.client.log_batch(self.id, self._metrics(values), synchronous=False))

    def summarize(self, values: dict[str, Any]) -> None:
        """Send finite numbers as metrics, and the rest as tags."""
        numbers = {
            name: one for name, one in values.items() if type(one) in (int, float) and isfinite(one)
        }
        self.client.log_batch(self.id, self._metrics(numbers))
        for name in values.keys() - numbers.keys():
            self.client.set_tag(self.id, legal_name(name), values[name])

    def _metrics(self, values: dict[str, float]) -> list[Any]:
        from mlflow.entities import Metric

        return [
            Metric(legal_name(k), v, int(time.time() * 1000), len(self.sent))
            for k, v in values.items()
        ]

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Send a table as a JSON file."""
        self.client.log_dict(self.id, {"columns": columns, "data": rows}, f"{name}.json")

    def log_files(self, run_dir: Path) -> None:
        """Send the picture and report.json."""
        for path in filter(Path.is_file, (run_dir / "layers.png", run_dir / "report.json")):
            self.client.log_artifact(self.id, path)

    def log_lineage(self, report: Report) -> None:
        """Say which model the run used; `summarize` has the place of the checkpoint."""
        self.client.set_tag(self.id, "dense_model", str(report.config["model"]["path"]))

    def finish(self, failed: bool) -> None:
        """End the run, and wait until all is sent."""
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")
        for operation in self.sent:
            operation.wait()


def legal_name(name: str) -> str:
    """Return a name as MLflow takes it: "perplexity@128" becomes "perplexity_128"."""
    return re.sub(r"[^\w\-. :/]|^/|(?<=/)/", "_", name)
