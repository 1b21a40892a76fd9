"""A run in W&B, whose errors never stop the pipeline."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flap.config.messages import one_line
from flap.results.report import Report
from flap.storage.progress import Step
from flap.tracking.artifacts import log_lineage, log_report
from flap.tracking.base import JobInfo, TrackedRun
from flap.tracking.login import resolve_mode
from flap.tracking.records import kept_id, summary

if TYPE_CHECKING:
    import wandb

    from flap.tracking.weights_and_biases import Wandb

log = logging.getLogger(__name__)

INIT_SECONDS = 20.0  # a server that does not answer for this long is unreachable
FINISH_SECONDS = 120.0  # after this, the rest is left to `wandb sync`
CHECKPOINT_SECONDS = 3600.0  # the same if a checkpoint is uploaded
PROGRESS_SECONDS = 1.0  # between two records of one stage
WIDTHS = ("query_heads", "kv_heads", "neurons")


class Mirror(TrackedRun):
    """A run in W&B. Its first error is logged in one line, later ones are ignored; none reaches the pipeline."""

    def __init__(self, options: "Wandb", run_dir: Path) -> None:
        self.options, self.run_dir = options, run_dir
        self.run: wandb.Run | None = None
        self.warned = False
        self.due: dict[str, float] = {}  # stage -> when its next record may be sent

    def attempt(self, action: Callable[[], Any]) -> None:
        """Call `action` and log its error, if any."""
        try:
            action()
        except Exception as error:  # W&B raises errors of many types
            self.warn(error)

    def send(self, action: Callable[["wandb.Run"], Any]) -> None:
        """Call `action` with the W&B run, if there is one, and log its error, if any."""
        run = self.run
        if run is not None:
            self.attempt(lambda: action(run))

    def warn(self, error: Exception) -> None:
        """Log the first error in one line."""
        if not self.warned:
            text = "W&B: %s: %s; the run goes on, its files in %s do not depend on it"
            log.warning(text, type(error).__name__, one_line(error), self.run_dir)
        self.warned = True

    def open(self, config: dict[str, Any], job: JobInfo) -> None:
        """Start the W&B run; start it offline if that fails, as with an unreachable server."""
        import wandb

        try:
            self.run = self._init(resolve_mode(self.options.mode), config, job)
        except Exception as error:
            self.warn(error)
            wandb.teardown()  # otherwise the half-started run would keep its id
            self.run = self._init("offline", config, job)
        if self.run.offline:
            log.info("W&B: recorded offline; send it with: wandb sync %s", Path(self.run.dir).parent)
        elif self.run.url:  # none if WANDB_MODE=disabled
            log.info("W&B: %s", self.run.url)
        self.run.define_metric("progress/*", summary="none")
        self.run.summary["folder"] = str(self.run_dir.resolve())  # what `python -m flap.compare` takes

    def _init(self, mode: str, config: dict[str, Any], job: JobInfo) -> "wandb.Run":
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            finish_timeout=CHECKPOINT_SECONDS if self.options.log_checkpoint else FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        return wandb.init(
            project=self.options.project, entity=self.options.entity, mode=mode,  # type: ignore[arg-type]
            id=kept_id(self.run_dir, job.id), resume="allow",  # a requeued job continues its own run
            reinit="finish_previous",  # one run for each job, also if all jobs run in one process
            name=job.name, group=self.options.group or job.group, job_type=job.job_type,
            tags=list(dict.fromkeys([*job.tags, *self.options.tags])),
            config=config, dir=self.run_dir, settings=settings,
        )  # fmt: skip

    def progress(self, step: Step) -> None:
        """Send the progress of a step (share, items, tokens per second), at most once a second, and at its end."""
        now = time.monotonic()
        if not step.done or (step.done != step.total and now < self.due.get(step.stage, 0.0)):
            return
        self.due[step.stage] = now + PROGRESS_SECONDS
        name = f"progress/{step.stage}"
        values: dict[str, float] = {f"{name}/items": step.done}
        if step.total:
            values[name] = step.done / step.total
        if step.tokens and step.seconds:
            values[f"{name}/tokens_per_second"] = step.tokens / step.seconds
        self.send(lambda run: run.log(values))

    def finish(self, report: Report) -> None:
        """Send numbers, layer widths, the picture, report.json, and what became of the dense model."""
        columns = ["layer", *(f"{width}_before" for width in WIDTHS), *WIDTHS]
        pairs = zip(report.layers_before, report.layers, strict=True)
        rows = [[i, *(layer[width] for layer in pair for width in WIDTHS)] for i, pair in enumerate(pairs)]
        self.send(lambda run: run.summary.update(summary(report)))
        self.log_table("layers", columns, rows)
        self.send(lambda run: log_report(run, self.run_dir))
        if report.checkpoint:
            self.send(lambda run: log_lineage(run, report, upload=self.options.log_checkpoint))

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Send a table."""

        def log_it(run: "wandb.Run") -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)})

        self.send(log_it)
