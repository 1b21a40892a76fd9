"""What a run tells its tracker, whichever that is, and the tracker that does nothing.

A tracker is one file: a `Tracking` that opens a `RunInTracker`, whose six methods are all that is asked of it.
"""

import hashlib
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from flap.config import one_line, redacted
from flap.results import Report
from flap.runtime.progress import Step, listening
from flap.storage import write_text

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0  # between two records of one stage
WIDTHS = ("query_heads", "kv_heads", "neurons")


@dataclass(frozen=True)
class JobInfo:
    """The names of a run in its tracker."""

    id: str  # any text that is unique on this machine, such as the run's folder
    name: str
    group: str | None = None
    job_type: str = "run"  # or "sweep", "study"
    tags: tuple[str, ...] = ()


class RunInTracker(ABC):
    """A run that a tracker has opened. Any of its methods may raise anything."""

    @abstractmethod
    def log(self, values: dict[str, float]) -> None:
        """Send numbers of this moment."""

    @abstractmethod
    def summarize(self, values: dict[str, Any]) -> None:
        """Send the results of the run."""

    @abstractmethod
    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Send a table."""

    @abstractmethod
    def log_files(self, run_dir: Path) -> None:
        """Send the picture of the layers, if it could be drawn, and report.json."""

    @abstractmethod
    def log_lineage(self, report: Report) -> None:
        """Send the dense model as what the run used, and the checkpoint as what it made."""

    @abstractmethod
    def finish(self, failed: bool) -> None:
        """End the run."""


@dataclass
class TrackedRun:
    """A run and its tracker, whose first error is logged in one line; later ones are ignored, none ends the run."""

    tracker: str
    run_dir: Path
    there: RunInTracker | None = None
    _warned: bool = False
    _due: dict[str, float] = field(
        default_factory=dict
    )  # stage -> when its next record may be sent

    def warn(self, error: Exception) -> None:
        """Log the first error in one line."""
        if not self._warned:
            log.warning(
                "%s: %s: %s; the run goes on, its files in %s do not depend on it",
                self.tracker,
                type(error).__name__,
                one_line(error),
                self.run_dir,
            )
        self._warned = True

    def send(self, action: Callable[[RunInTracker], object]) -> None:
        """Call `action` with the run in the tracker, if there is one, and log its error, if any."""
        try:
            if self.there is not None:
                action(self.there)
        except Exception as error:  # trackers raise errors of many types
            self.warn(error)

    def progress(self, step: Step) -> None:
        """Send the progress of a step (share, items, tokens per second), at most once a second, and at its end."""
        now = time.monotonic()
        if step.done != step.total and now < self._due.get(step.stage, 0.0):
            return
        self._due[step.stage] = now + PROGRESS_SECONDS
        name = f"progress/{step.stage.partition(',')[0]}"  # of "calibrate, layer by layer"
        values: dict[str, float] = {f"{name}/items": step.done}
        if step.total:
            values[name] = step.done / step.total
        if step.tokens and step.seconds:
            values[f"{name}/tokens_per_second"] = step.tokens / step.seconds
        self.send(lambda there: there.log(values))

    def finish(self, report: Report) -> None:
        """Track a finished run, whose files are written: numbers, layer widths, files, what became of the model."""
        columns = ["layer", *(f"{width}_before" for width in WIDTHS), *WIDTHS]
        self.send(lambda there: there.summarize(redacted(summary(report))))
        self.send(lambda there: there.log_table("layers", columns, layer_rows(report)))
        self.send(lambda there: there.log_files(self.run_dir))
        if report.checkpoint:
            self.send(lambda there: there.log_lineage(report))


def layer_rows(report: Report) -> list[list[Any]]:
    """Return for each layer its index, and its widths before and after."""
    pairs = zip(report.layers_before, report.layers, strict=True)
    return [
        [i, *(layer[width] for layer in pair for width in WIDTHS)] for i, pair in enumerate(pairs)
    ]


def summary(report: Report) -> dict[str, Any]:
    """Return the report's numbers by flat names: "pruned/wikitext2/perplexity@2048", "ratio/realised_decoder"."""
    names = (
        "difference_stderr",
        "difference_p_value",
        "ratio",
        "parameters",
        "seconds",
        "peak_memory_bytes",
    )
    sections: dict[str, Any] = {
        **report.evaluation,
        **{name: getattr(report, name) for name in names},
    }
    sections |= {f"target/{name}": values for name, values in report.target.items()}
    numbers = {
        f"{section}/{name}": value
        for section, entries in sections.items()
        for name, value in entries.items()
    }
    return numbers | {"statistics_cache": report.statistics_cache, "checkpoint": report.checkpoint}


class Tracking(ABC):
    """The base class of the choices of the `tracking` group."""

    name = ""  # of the tracker, in messages

    @abstractmethod
    def check(self) -> None:
        """Check all options before the weights are loaded.

        Raises:
            ValueError: an option is not allowed.
        """

    @abstractmethod
    def open(self, config: dict[str, Any], job: JobInfo, run: TrackedRun) -> RunInTracker | None:
        """Return the run that the tracker has begun; None: it tracks nothing."""

    def surroundings(self, run_dir: Path) -> AbstractContextManager[None]:
        """Return what the tracker needs around a run, such as environment variables."""
        return nullcontext()

    @contextmanager
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> Iterator[TrackedRun]:
        """Track a run for as long as the block lasts; if the block raises, the run is marked failed."""
        run = TrackedRun(self.name, run_dir)
        failed = True
        with self.surroundings(run_dir):
            try:
                run.there = self.open(redacted(config), job, run)
            except Exception as error:
                run.warn(error)
            try:
                with listening(run.progress):
                    yield run
                failed = False
            finally:
                run.send(lambda there: there.finish(failed))

    def log_study(self, sweep_dir: Path, columns: list[str], rows: list[list[Any]]) -> None:
        """Track the table of a sweep, in a run of the sweep's group; a repeated call updates the same run."""
        job = JobInfo(
            f"{sweep_dir}/study", f"{sweep_dir.name} study", group=sweep_dir.name, job_type="study"
        )
        with self.start({}, sweep_dir, job) as tracked:
            tracked.send(lambda there: there.log_table("study", columns, redacted(rows)))


@dataclass(frozen=True)
class NoTracking(Tracking):
    """The tracker that does nothing: the run's files are the only record."""

    def check(self) -> None:
        """Do nothing: there are no options."""

    def open(self, config: dict[str, Any], job: JobInfo, run: TrackedRun) -> None:
        """Track nothing."""


def kept_id(folder: Path, text: str) -> str:
    """Return the id that a run keeps in a folder of its tracker; made once, it is unique, also across machines."""
    file = folder / "id"
    if not file.is_file():
        write_text(file, f"{legal_id(text)}-{uuid4().hex[:8]}")
    return file.read_text()


def legal_id(text: str) -> str:
    """Return a valid id for runs and artifacts: the end of the text, and a hash of the whole text."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[-80:].strip("-.")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
