"""The tracker of the choice `tracking=trackio`: a database on this machine, or a Space of Hugging Face."""

import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flap.results import Report
from flap.tracking.base import JobInfo, RunInTracker, TrackedRun, Tracking, kept_id, require_package

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trackio(Tracking):
    """Track runs with Trackio."""

    project: str = "flap"  # of Trackio
    space: str | None = None  # a Space of Hugging Face, as mine/trackio, made if it is not there; None: this machine

    name = "Trackio"

    def check(self) -> None:
        """Check that the package is installed; raises ValueError if not."""
        require_package("trackio")

    def open(self, config: dict[str, Any], job: JobInfo, run: TrackedRun) -> "TrackioRun":
        """Begin the run of a folder, or go on with it: Trackio knows runs by their names."""
        import trackio

        about = {"job_type": job.job_type, "tags": list(job.tags), "folder": str(run.run_dir.resolve())}
        name = f"{job.name} {kept_id(run.run_dir / 'trackio', job.id)[-8:]}"
        with redirect_stdout(io.StringIO()):
            there = trackio.init(
                self.project, name, job.group, self.space, config=config | about, resume="allow", embed=False,
                auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        log.info("Trackio: run %s; trackio show --project %s", name, self.project)
        return TrackioRun(there)


@dataclass
class TrackioRun(RunInTracker):
    """A run in Trackio, which has a history and no summary."""

    run: Any

    def log(self, values: dict[str, Any]) -> None:
        """Send numbers as a step of the history."""
        self.run.log(values)

    def summarize(self, values: dict[str, Any]) -> None:
        """Send results as a step of the history."""
        self.log({name: value for name, value in values.items() if value is not None})

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Send a table."""
        import trackio
        from pandas import DataFrame

        self.log({name: trackio.Table(dataframe=DataFrame(rows, columns=columns))})

    def log_files(self, run_dir: Path) -> None:
        """Send the picture, and report.json as an artifact."""
        import trackio

        if (picture := run_dir / "layers.png").is_file():
            self.log({"picture": trackio.Image(str(picture))})
        self.run.log_artifact(str(run_dir / "report.json"), name="report", type="report")

    def log_lineage(self, report: Report) -> None:
        """Say which model the run used; `summarize` has the place of the checkpoint."""
        self.log({"dense_model": str(report.config["model"]["path"])})

    def finish(self, failed: bool) -> None:
        """End the run once all is written."""
        import trackio

        self.log({"failed": int(failed)})
        with redirect_stdout(io.StringIO()):
            trackio.finish()
