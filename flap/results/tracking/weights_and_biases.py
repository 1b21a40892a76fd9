"""The tracker of `tracking=wandb`: Weights & Biases (W&B)."""

import logging
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flap.evaluation.base import Numbers
from flap.results import Report
from flap.results.configs import Config
from flap.results.tracking.base import (
    JobInfo,
    Rows,
    RunInTracker,
    TrackedRun,
    Tracking,
    kept_id,
    legal_id,
)
from flap.results.tracking.login import MODES, require_key, resolve_mode

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

INIT_SECONDS = 20.0  # seconds after which a server that does not answer is considered unreachable
# maximum seconds to send data at the end of a run; the user can send the rest with `wandb sync`
FINISH_SECONDS = 120.0


@dataclass(frozen=True)
class Wandb(Tracking):
    """Track runs with Weights & Biases."""

    project: str = "flap"  # name of the project in W&B
    entity: str | None = None  # user or team in W&B; None: as in the user's W&B settings
    mode: str = "auto"  # "online", "offline", or "auto" (`resolve_mode` chooses online or offline)
    group: str | None = None  # group of the run in W&B; defaults to the name of the sweep's folder
    # tags of 1 to 64 characters each; flap adds the names of the metric and the structure
    tags: list[str] = field(default_factory=list)

    name = "W&B"

    def check(self) -> None:
        """Check the mode and the tags. If the mode is "online", also check the API key.

        Raises:
            ValueError: the mode is unknown, W&B would refuse a tag, or the mode is "online" and W&B
                has no valid key.
        """
        if self.mode not in MODES:
            raise ValueError(f"tracking.mode={self.mode}: expected one of {', '.join(MODES)}")
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"tracking.tags={tag}: expected tags of 1 to 64 characters")
        if self.mode == "online":
            require_key()

    def variables(self, run_dir: Path) -> dict[str, str]:
        """Return environment variables that silence W&B and keep its files in the run's folder."""
        folder = run_dir.resolve() / "wandb"
        return {
            "WANDB_SILENT": "true",
            "WANDB_CACHE_DIR": f"{folder}/cache",
            "WANDB_DATA_DIR": f"{folder}/data",
        }

    def open(self, config: Config, job: JobInfo, run: TrackedRun) -> "WandbRun":
        """Start a W&B run. If this fails, for example without a network, start the run offline."""
        import wandb

        try:
            opened = self._init(resolve_mode(self.mode), config, job, run.run_dir)
        except Exception as error:
            run.warn(error)
            wandb.teardown()  # otherwise the run that failed to start would still use the id
            opened = self._init("offline", config, job, run.run_dir)
        if opened.offline:
            folder = shlex.quote(str(Path(opened.dir).parent))
            log.info("W&B: recorded offline; send it with: wandb sync %s", folder)
        elif opened.url:  # a disabled run has no URL
            log.info("W&B: %s", opened.url)
        opened.define_metric("progress/*", summary="none")
        # the workspace that `python -m flap workspace` creates shows this folder in a column
        opened.summary["folder"] = str(run.run_dir.resolve())
        return WandbRun(opened)

    def _init(self, mode: Any, config: Config, job: JobInfo, run_dir: Path) -> "wandb.Run":
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        return wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            id=kept_id(run_dir / "wandb", job.id),
            resume="allow",  # a requeued job continues its W&B run
            # each job gets its own W&B run, even if all jobs run in the same process
            reinit="finish_previous",
            name=job.name,
            group=self.group or job.group,
            job_type=job.job_type,
            tags=list(dict.fromkeys([*job.tags, *self.tags])),
            config=config,
            dir=run_dir,
            settings=settings,
        )


@dataclass
class WandbRun(RunInTracker):
    """A run in W&B."""

    run: "wandb.Run"

    def log(self, values: Numbers) -> None:
        """Send values, such as the progress of calibration, as a step of the history in W&B."""
        self.run.log(values)

    def summarize(self, values: Config) -> None:
        """Send the results of the run as its summary in W&B."""
        self.run.summary.update(values)

    def log_table(self, name: str, columns: list[str], rows: Rows) -> None:
        """Send a table. The columns of the table may have values of several types."""
        import wandb

        table = wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)
        self.run.log({name: table})

    def log_files(self, run_dir: Path) -> None:
        """Send report.json as an artifact, and the plot of the layers (layers.png) if it exists."""
        import wandb

        picture = run_dir / "layers.png"
        if picture.is_file():
            self.run.log({"picture": wandb.Image(str(picture))})
        artifact = wandb.Artifact(f"report-{self.run.id}", type="report")
        artifact.add_file(str(run_dir / "report.json"))
        self.run.log_artifact(artifact)

    def log_lineage(self, report: Report) -> None:
        """Send two W&B artifacts, one for the dense model and one for the checkpoint.

        The artifacts contain only references to the files, so the weights are not uploaded.
        """
        import wandb

        path = str(report.config["model"]["path"])
        address = f"https://huggingface.co/{path}"
        if Path(path).is_dir():
            address = Path(path).resolve().as_uri()
        source = {"source": report.sources.get("model")}
        dense = wandb.Artifact(f"dense-{legal_id(path)}", type="model", metadata=source)
        # checksum=False, because W&B would read all weights to compute a checksum
        dense.add_reference(address, name="model", checksum=False)
        # The public method run.use_artifact could also log the dense model as the run's input. But
        # it refuses offline runs, and waits for the server in online runs.
        self.run._log_artifact(dense, is_user_created=True, use_after_commit=True)

        loads_with = {"loads_with": report.loads_with}
        made = wandb.Artifact(f"model-{self.run.id}", type="model", metadata=loads_with)
        checkpoint = Path(report.checkpoint or "").resolve()
        made.add_reference(checkpoint.as_uri(), name="checkpoint", checksum=False)
        self.run.log_artifact(made)

    def finish(self, failed: bool) -> None:
        """End the run, with exit code 1 if it failed."""
        self.run.finish(exit_code=int(failed))
