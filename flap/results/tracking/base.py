"""The base classes of trackers, and the tracker that does nothing.

A tracker is a service that shows runs, such as Weights & Biases. Each tracker has its own subclass
of `Tracking`, whose method `open` returns a `RunInTracker`. A stage is a part of a run, such as
calibration.
"""

import hashlib
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from flap.config import one_line, redacted
from flap.evaluation.base import Numbers
from flap.results import Report
from flap.results.configs import Config, flat
from flap.results.tracking.login import environment
from flap.runtime.progress import Step, listening
from flap.storage import write_text

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0  # minimum seconds between two progress messages of a stage
WIDTHS = ("query_heads", "kv_heads", "neurons")
# columns of the table with the numbers of heads and neurons of each layer
LAYERS = ["layer", *(f"{width}_before" for width in WIDTHS), *WIDTHS]
# Sections of the report that are sent to the tracker as the summary of a run. The section
# `evaluation` is sent, too.
SUMMARIZED = (
    "difference_stderr",
    "difference_p_value",
    "ratio",
    "parameters",
    "target",
    "seconds",
    "peak_memory_bytes",
    "statistics_cache",
    "checkpoint",
)

Rows = list[list[Any]]


@dataclass(frozen=True)
class JobInfo:
    """The id, name, group, type and tags of a run in its tracker."""

    id: str  # a text that is unique on this machine, such as the run's folder
    name: str
    group: str | None = None  # the name of the sweep; None for a single run
    # "run": a single run; "sweep": a run of a sweep; "study": the table with all runs of a sweep
    job_type: str = "run"
    tags: tuple[str, ...] = ()


class RunInTracker(ABC):
    """A run that a tracker has opened. The methods may raise any exception."""

    @abstractmethod
    def log(self, values: Numbers) -> None:
        """Send values that change during the run, such as the progress of a stage."""

    @abstractmethod
    def summarize(self, values: Config) -> None:
        """Send the results of the run."""

    @abstractmethod
    def log_table(self, name: str, columns: list[str], rows: Rows) -> None:
        """Send a table."""

    @abstractmethod
    def log_files(self, run_dir: Path) -> None:
        """Send report.json, and layers.png if it exists.

        The plot layers.png shows the heads, and the neurons or experts, of each layer.
        """

    @abstractmethod
    def log_lineage(self, report: Report) -> None:
        """Send the dense model as the input of the run, and the checkpoint as its output."""

    @abstractmethod
    def finish(self, failed: bool) -> None:
        """End the run."""


@dataclass
class TrackedRun:
    """A run whose progress and results are sent to a tracker.

    The first error of the tracker is logged in one line. Later errors are ignored. No error of a
    tracker ends the run.
    """

    tracker: str  # name of the tracker, for messages
    run_dir: Path
    opened: RunInTracker | None = None  # the run in the tracker; None if nothing is tracked
    _warned: bool = False
    # the earliest time at which the progress of a stage may be sent again, in seconds of
    # `time.monotonic`; the keys are the names of the stages
    _due: Numbers = field(default_factory=dict)

    def warn(self, error: Exception) -> None:
        """Log an error in one line, unless an earlier error of this tracker was already logged."""
        if self._warned:
            return
        self._warned = True
        log.warning(
            "%s: %s: %s; the run continues, and its files in %s do not need the tracker",
            self.tracker,
            type(error).__name__,
            one_line(error),
            self.run_dir,
        )

    def send(self, action: Callable[[RunInTracker], object]) -> None:
        """Call `action` with the run in the tracker, unless nothing is tracked.

        If `action` raises an error, log it.
        """
        try:
            if self.opened is not None:
                action(self.opened)
        except Exception as error:  # trackers raise errors of many types
            self.warn(error)

    def progress(self, step: Step) -> None:
        """Send the progress of a stage, and its speed in tokens per second.

        The progress of a stage is sent at most once per second, and once more when the stage ends.
        """
        now = time.monotonic()
        if step.done != step.total and now < self._due.get(step.stage, 0.0):
            return
        self._due[step.stage] = now + PROGRESS_SECONDS

        stage, _, _ = step.stage.partition(",")  # "calibrate, layer by layer" gives "calibrate"
        values: Numbers = {f"progress/{stage}/items": step.done}
        if step.total:
            values[f"progress/{stage}"] = step.done / step.total
        if step.tokens and step.seconds:
            values[f"progress/{stage}/tokens_per_second"] = step.tokens / step.seconds
        self.send(lambda opened: opened.log(values))

    def finish(self, report: Report) -> None:
        """Send the results and files of a finished run.

        If the run has saved a checkpoint, also send links to the dense model and the checkpoint.
        """
        self.send(lambda opened: opened.summarize(redacted(summary(report))))
        self.send(lambda opened: opened.log_table("layers", LAYERS, layer_rows(report)))
        self.send(lambda opened: opened.log_files(self.run_dir))
        if report.checkpoint:
            self.send(lambda opened: opened.log_lineage(report))


def layer_rows(report: Report) -> Rows:
    """Return a row for each layer: its index, and its sizes before and after pruning.

    The sizes are the numbers of query heads, KV heads and neurons.
    """
    rows = []
    for i, layers in enumerate(zip(report.layers_before, report.layers, strict=True)):
        rows.append([i, *(layer[width] for layer in layers for width in WIDTHS)])
    return rows


def summary(report: Report) -> Config:
    """Return the parts of a report that are sent to the tracker as the summary of the run.

    The parts are in a flat dict, with keys such as "ratio/realised_decoder".
    """
    sections = {name: getattr(report, name) for name in SUMMARIZED}
    return flat(report.evaluation | sections, separator="/")


class Tracking(ABC):
    """Base class of the choices in the config group `tracking`."""

    name = ""  # name of the tracker, for messages

    @abstractmethod
    def check(self) -> None:
        """Check all options of this tracker, before the run loads any weights.

        Raises:
            ValueError: an option is not allowed.
        """

    @abstractmethod
    def open(self, config: Config, job: JobInfo, run: TrackedRun) -> RunInTracker | None:
        """Start a run in the tracker and return it; return None if nothing is tracked.

        config: the config of the run as dicts and lists, without secrets.
        run: the run to track, whose method `warn` logs errors of the tracker.
        """

    def variables(self, run_dir: Path) -> dict[str, str]:
        """Return environment variables for the tracker's package.

        `start` sets each of these variables, unless the user has already set it.
        """
        return {}

    @contextmanager
    def start(self, config: Config, run_dir: Path, job: JobInfo) -> Iterator[TrackedRun]:
        """Track a run during a `with` block. If the block fails, mark the run as failed."""
        run = TrackedRun(self.name, run_dir)
        failed = True
        with environment(**self.variables(run_dir)):
            try:
                run.opened = self.open(redacted(config), job, run)
            except Exception as error:
                run.warn(error)
            try:
                with listening(run.progress):
                    yield run
                failed = False
            finally:
                run.send(lambda opened: opened.finish(failed))

    def log_study(self, sweep_dir: Path, columns: list[str], rows: Rows) -> None:
        """Send the table of a sweep to the tracker, as an additional run in the sweep's group.

        A second call for the same sweep updates this additional run.
        """
        group = sweep_dir.name
        job = JobInfo(f"{sweep_dir}/study", f"{group} study", group, job_type="study")
        with self.start({}, sweep_dir, job) as tracked:
            tracked.send(lambda opened: opened.log_table("study", columns, redacted(rows)))


@dataclass(frozen=True)
class NoTracking(Tracking):
    """Track nothing. The results of a run are only in its folder."""

    def check(self) -> None:
        """Do nothing, because this tracker has no options."""

    def open(self, config: Config, job: JobInfo, run: TrackedRun) -> None:
        """Track nothing."""


def kept_id(folder: Path, text: str) -> str:
    """Return the id of a run in its tracker.

    The first call creates the id and stores it in a file, so that a run that is started again has
    the same id. The id is unique across machines.

    folder: the folder in which the id is stored.
    text: a text that is unique on this machine (`JobInfo.id`), from which the id is made.
    """
    file = folder / "id"
    if not file.is_file():
        write_text(file, f"{legal_id(text)}-{uuid4().hex[:8]}")
    return file.read_text()


def legal_id(text: str) -> str:
    """Return an id that trackers accept for runs and artifacts.

    The id consists of the last 80 characters of the text, with "-" in place of special characters,
    and of a hash of the whole text.
    """
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[-80:].strip("-.")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
