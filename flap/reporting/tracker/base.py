"""What a run tells its tracker, and the tracker that tells nobody."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flap.reporting.report import Report


@dataclass(frozen=True)
class JobInfo:
    """What a tracker calls a run. id: any text that tells the runs of one machine apart, such as a run's folder."""

    id: str
    name: str
    group: str | None = None
    job_type: str = "run"  # or "sweep"
    tags: tuple[str, ...] = ()


class TrackedRun:
    """What a run tells its tracker; here nobody listens."""

    def finish(self, report: Report) -> None:
        """Take over a finished run, whose files are written."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Take over one table."""


class Tracking(ABC):
    """A choice of the `tracking` group."""

    @abstractmethod
    def check(self) -> None:
        """All that can be known before weights are loaded. Raises: ValueError: an option is out of range."""

    @abstractmethod
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> AbstractContextManager[TrackedRun]:
        """One run for as long as the block lasts; where the block raises, the run has failed and the error passes."""

    def log_study(self, sweep_dir: Path, columns: list[str], rows: list[list[Any]]) -> None:
        """The table of a sweep, in a run of its group. Once more is the same run again, not a second one."""
        job = JobInfo(f"{sweep_dir}/study", f"{sweep_dir.name} study", group=sweep_dir.name, job_type="study")
        with self.start({}, sweep_dir, job) as tracked:
            tracked.log_table("study", columns, rows)


@dataclass(frozen=True)
class NoTracking(Tracking):
    """The files are all there is."""

    def check(self) -> None:
        """Nothing can be wrong."""

    @contextmanager
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> Iterator[TrackedRun]:
        """A run that tells nobody."""
        yield TrackedRun()
