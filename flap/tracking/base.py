"""The interface of trackers, and the tracker that does nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flap.results.report import Report


@dataclass(frozen=True)
class JobInfo:
    """The names of a run in its tracker. id: any text that is unique on this machine, such as the run's folder."""

    id: str
    name: str
    group: str | None = None
    job_type: str = "run"  # or "sweep"
    tags: tuple[str, ...] = ()


class TrackedRun:
    """A run in its tracker; this base class ignores everything."""

    def finish(self, report: Report) -> None:
        """Track a finished run, whose files are written."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Track a table."""


class Tracking(ABC):
    """The base class of the choices of the `tracking` group."""

    @abstractmethod
    def check(self) -> None:
        """Check all options before the weights are loaded.

        Raises:
            ValueError: an option is not allowed.
        """

    @abstractmethod
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> AbstractContextManager[TrackedRun]:
        """Track a run for as long as the block lasts; if the block raises, the run is marked failed."""

    def log_study(self, sweep_dir: Path, columns: list[str], rows: list[list[Any]]) -> None:
        """Track the table of a sweep, in a run of the sweep's group; a repeated call updates the same run."""
        job = JobInfo(f"{sweep_dir}/study", f"{sweep_dir.name} study", group=sweep_dir.name, job_type="study")
        with self.start({}, sweep_dir, job) as tracked:
            tracked.log_table("study", columns, rows)


@dataclass(frozen=True)
class NoTracking(Tracking):
    """The tracker that does nothing: the run's files are the only record."""

    def check(self) -> None:
        """Do nothing: there are no options."""

    @contextmanager
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> Iterator[TrackedRun]:
        """Yield a run that is not tracked."""
        yield TrackedRun()
