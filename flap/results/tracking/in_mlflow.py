"""The tracker of `tracking=mlflow`, which needs an MLflow server and `mlflow-skinny`."""

import logging
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from flap.config import how_to_install, with_quoted_password
from flap.evaluation.base import Numbers
from flap.results import Report
from flap.results.configs import Config, flat
from flap.results.tracking.base import (
    JobInfo,
    Rows,
    RunInTracker,
    TrackedRun,
    Tracking,
    kept_id,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MLflow(Tracking):
    """Track runs with an MLflow server."""

    # address of the server, such as http://127.0.0.1:5000; defaults to MLFLOW_TRACKING_URI
    uri: str | None = None
    experiment: str = "flap"  # MLflow's experiment; created if it does not exist

    name = "MLflow"

    def check(self) -> None:
        """Check that the package of MLflow is installed, and that the address of a server is set.

        Raises:
            ValueError: the package or the address is missing.
        """
        if find_spec("mlflow") is None:
            raise ValueError(
                f"tracking=mlflow: the package is not installed; {how_to_install('mlflow')}"
            )
        if not (self.uri or os.environ.get("MLFLOW_TRACKING_URI")):
            raise ValueError(
                "tracking.uri=None: expected a server, as http://127.0.0.1:5000, "
                "or MLFLOW_TRACKING_URI"
            )

    def variables(self, run_dir: Path) -> dict[str, str]:
        """Return environment variables that silence MLflow and shorten its waits for the server."""
        return {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        }

    def open(self, config: Config, job: JobInfo, run: TrackedRun) -> "MLflowRun":
        """Start the MLflow run that belongs to the run's folder, or continue it if it exists."""
        from mlflow import MlflowClient

        # silence urllib3, because flap itself warns about an unreachable server
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        uri = self.uri or os.environ["MLFLOW_TRACKING_URI"]
        client = MlflowClient(with_quoted_password(uri))
        begun = self._begin(client, job, kept_id(run.run_dir / "mlflow", job.id))
        opened = MLflowRun(client, begun.info.run_id)
        client.update_run(opened.id, "RUNNING")

        for key, value in flat(config | {"folder": run.run_dir.resolve()}).items():
            name = legal_name(key)
            if name not in begun.data.params:  # MLflow refuses to set a parameter again
                client.log_param(opened.id, name, value)
        log.info("MLflow: run %s of the experiment %s", opened.id, self.experiment)
        return opened

    def _begin(self, client: Any, job: JobInfo, key: str) -> Any:
        """Return the MLflow run whose tag `flap_id` is `key`, and create it if there is none."""
        from mlflow import MlflowException

        if not client.get_experiment_by_name(self.experiment):
            # another job may have created the experiment after the line above
            with suppress(MlflowException):
                client.create_experiment(self.experiment)
        experiment = client.get_experiment_by_name(self.experiment).experiment_id
        for earlier in client.search_runs([experiment], f"tags.flap_id = '{key}'"):
            return earlier
        tags = {
            "flap_id": key,
            "job_type": job.job_type,
            "tags": ", ".join(job.tags),
            "group": job.group or "",
        }
        return client.create_run(experiment, tags=tags, run_name=job.name)


@dataclass
class MLflowRun(RunInTracker):
    """A run in MLflow. In `log`, the MLflow client sends the values in another thread."""

    client: Any
    id: str
    sent: list[Any] = field(default_factory=list)  # asynchronous calls that may still be running

    def log(self, values: Numbers) -> None:
        """Send values, such as the progress of calibration, without waiting for the server."""
        self.sent.append(self.client.log_batch(self.id, self._metrics(values), synchronous=False))

    def summarize(self, values: Config) -> None:
        """Send finite numbers as metrics, and all other values as tags."""
        numbers = {}
        for name, value in values.items():
            if isinstance(value, int | float) and isfinite(value):
                numbers[name] = value
            else:
                self.client.set_tag(self.id, legal_name(name), value)
        self.client.log_batch(self.id, self._metrics(numbers))

    def _metrics(self, values: Numbers) -> list[Any]:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        step = len(self.sent)
        return [Metric(legal_name(name), value, now, step) for name, value in values.items()]

    def log_table(self, name: str, columns: list[str], rows: Rows) -> None:
        """Send a table as a JSON file."""
        self.client.log_dict(self.id, {"columns": columns, "data": rows}, f"{name}.json")

    def log_files(self, run_dir: Path) -> None:
        """Send report.json, and layers.png if it exists.

        The plot layers.png shows the heads, and the neurons or experts, of each layer.
        """
        for name in ("layers.png", "report.json"):
            if (run_dir / name).is_file():
                self.client.log_artifact(self.id, run_dir / name)

    def log_lineage(self, report: Report) -> None:
        """Send the path of the dense model. `summarize` sends the path of the checkpoint."""
        self.client.set_tag(self.id, "dense_model", str(report.config["model"]["path"]))

    def finish(self, failed: bool) -> None:
        """End the run, and wait until the values from all calls of `log` have been sent."""
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")
        for operation in self.sent:
            operation.wait()


def legal_name(name: str) -> str:
    """Return a name that MLflow accepts; for example, "perplexity_128" for "perplexity@128"."""
    return re.sub(r"[^\w\-. :/]|^/|(?<=/)/", "_", name)
