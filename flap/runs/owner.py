"""What the first process of a run has for all: its folder, its status, the tracker, and the console."""

import json
import logging
import os
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flap.config import (
    FlapConfig,
    build,
    check_measurements,
    recorded,
    redacted,
    refuse,
    settled_by,
    shown,
    timeout,
    typed,
)
from flap.config.paths import check_path
from flap.runs.sweeps.callbacks import FolderCallback
from flap.runs.sweeps.launching import check_launcher, claim_gpu
from flap.runtime import ranks
from flap.runtime.ranks import by_first
from flap.storage import digest, read_json, read_state, write_status, write_text
from flap.storage.status import SETTINGS, run_folder

if TYPE_CHECKING:
    from flap.results import Report
    from flap.results.tracking import JobInfo, TrackedRun
    from flap.runs.run import Run

log = logging.getLogger(__name__)

TRACKED = "tracked.json"  # of a run's folder: the tracker that has its report, and which one


@dataclass
class Owner:
    """What the first process has for all: the run's folder and its status, the tracker, and the console."""

    config: DictConfig
    hydra: Any  # Hydra's own part of the config
    held: ExitStack = field(default_factory=ExitStack)  # the folder's lock and the tracker
    tracked: "TrackedRun | None" = None

    def __post_init__(self) -> None:
        self.run_dir = Path(self.hydra.runtime.output_dir)
        # where the results are; an earlier start of the cell may have had another job number
        self.place = self.run_dir
        self._report_before = ""
        self._recorded = False  # whether the composed config of this command is in .hydra
        self.overrides = list(self.hydra.overrides.task)  # what the user has written
        self.in_sweep = bool(self.hydra.mode == RunMode.MULTIRUN)

    def timeout(self) -> timedelta:
        """Return how long the processes of this run wait for one another.

        They join before the config is checked, so this value is checked by itself, and the new
        folder of a refused run is removed here.
        """
        try:
            return timeout(self.config.timeout_minutes)
        except ValueError:
            with ExitStack() as stack:
                if ranks.is_first():
                    stack.enter_context(self._own_folder())
                raise

    def _own_folder(self) -> AbstractContextManager[None]:
        """Hold the run's folder. What a refused run has created there is removed, but for cells of a sweep."""
        return run_folder(self.run_dir, None if self.in_sweep else FolderCallback.created)

    @by_first
    def open(self) -> Path | None:
        """Check the config, and return the folder of the run; None for a dry run, which is printed."""
        self.held.enter_context(self._own_folder())
        state = read_state(self.run_dir)
        foreign = state is None and (self.run_dir / SETTINGS).exists()  # of another program
        if state != "finished":
            check_path("hydra.run.dir", str(self.run_dir))
            _check_writable(self.run_dir)
        if state != "finished" and not foreign:
            self._record()
        check_measurements(self.config.get("eval"), self.overrides)
        config = typed(self.config)
        refuse(self.overrides, settled_by(config.plan))
        from flap.runs.dry_run import dry_run

        _quieten_libraries()
        if config.dry_run:
            print(config.run_name, *dry_run(config).lines(), sep="\n")
            return None
        check_launcher(self.hydra)
        shares_gpus = "joblib" in self.hydra.launcher._target_ and config.model.device != "cpu"
        if shares_gpus and (gpu := claim_gpu(Path(self.hydra.sweep.dir))):
            log.info("GPU %s", gpu)
        from flap.results.tracking import Tracking

        build("tracking", config.tracking, Tracking).check()
        return self.run_dir

    def at_home(self, run: "Run") -> "Run":
        """Return the run in the folder of an earlier start of it: its own, or that of a cell beside in a sweep.

        A wider sweep gives a cell another job number, and so another folder. The folder of the earlier start is then
        held, too.

        Raises:
            ValueError: the run's own folder holds a finished run of another config, or of another version.
        """
        from flap.runs.preparation import in_folder

        self.place = self._find_home(run)
        return run if self.place == self.run_dir else in_folder(run, self.place)

    @by_first
    def _find_home(self, run: "Run") -> Path:
        from flap.runs.home import check_home, earlier_start

        if not run.config.resume:
            return self.run_dir
        check_home(run)
        if not self.in_sweep:
            return self.run_dir
        folder = earlier_start(run) or self.run_dir
        if folder != self.run_dir:
            self.held.enter_context(run_folder(folder))
        return folder

    @by_first
    def begin(self, run: "Run") -> None:
        """Say that the run is running; a finished one in its folder stays finished until another is in its place."""
        finished = read_state(self.place) == "finished"
        if not finished or not run.config.resume:
            _check_writable(self.place)  # else there may be nothing to write
        old = self.place / "checkpoint"
        if not run.config.checkpoint.save and old.exists():
            log.warning(
                "%s: of an earlier run, whose report is replaced; checkpoint.save=false leaves it",
                old,
            )
        self._report_before = self._report_digest()
        if not finished:
            if not self._recorded:
                self._record()
            write_status(self.place, "running")
            self._track(run.config)

    def _track(self, config: FlapConfig) -> None:
        plain = asdict(config) | {
            "choices": dict(self.hydra.runtime.choices)
        }  # {"metric": "WIFV"}, beside its class
        from flap.results.tracking import Tracking

        tracking = build("tracking", config.tracking, Tracking)
        started = tracking.start(plain, self.place, self._job_info())
        self.tracked = self.held.enter_context(started)

    def finish(self, report: "Report", config: FlapConfig) -> None:
        """Say that the run has finished, send its report to the tracker, and print what is new."""
        from flap.results import show

        unchanged = self._report_digest() == self._report_before
        finished = read_state(self.place) == "finished"
        if not unchanged and self.place == self.run_dir and finished:
            self._record()  # until now, the folder had the config of another run
        if not finished:
            write_status(self.place, "finished")
        if self.tracked is None and self._is_to_be_sent():
            self._track(config)
        if self.tracked is not None:
            self._send(report)
        self.held.close()
        if unchanged:
            log.info("done already, in %s (resume=false runs it again)", self.place)
        else:
            show(report, self.place)

    def _is_to_be_sent(self) -> bool:
        """Return whether the tracker does not have this report yet."""
        return not self._has_tracker or read_json(self.place / TRACKED) != self._sent

    def _report_digest(self) -> str:
        """Return a digest of the report that is in the folder; empty if there is none."""
        file = self.place / "report.json"
        return digest(file.read_text(encoding="utf-8")) if file.is_file() else ""

    def _send(self, report: "Report") -> None:
        """Send a report to the tracker, and note in the folder which one has it."""
        assert self.tracked is not None
        self.tracked.finish(report)
        if self._has_tracker:
            with suppress(OSError):  # a full disk: it is sent again
                write_text(self.place / TRACKED, json.dumps(self._sent))

    @property
    def _has_tracker(self) -> bool:
        return "NoTracking" not in self.config.tracking._target_

    @property
    def _sent(self) -> dict[str, str]:
        """The tracker of this command, and the report that it gets."""
        return {self.config.tracking._target_: self._report_digest()}

    def _record(self) -> None:
        """Write the composed config into .hydra without secrets.

        Hydra would write it with them, and before the folder is known to be free (`hydra.output_subdir`).
        """
        hydra = HydraConfig.instance().cfg
        assert isinstance(hydra, DictConfig)
        parts = {
            "config": recorded(self.config),
            "hydra": recorded(hydra),
            "overrides": redacted(list(self.hydra.overrides.task)),
        }
        for name, part in parts.items():
            write_text(self.run_dir / SETTINGS / f"{name}.yaml", OmegaConf.to_yaml(part))
        self._recorded = True

    def _job_info(self) -> "JobInfo":
        """Return the names of the run for its tracker."""
        from flap.results.tracking import JobInfo

        choices = self.hydra.runtime.choices
        name = str(self.config.run_name)
        sweep = (
            {"group": Path(self.hydra.sweep.dir).resolve().name, "job_type": "sweep"}
            if self.in_sweep
            else {}
        )
        tags = (choices["metric"], choices["structure"]) if self.config.plan is None else ("plan",)
        return JobInfo(str(self.place.resolve()), name, tags=tags, **sweep)


def _check_writable(folder: Path) -> None:
    """Check that the files of a run can be written into its folder, before the work begins."""
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"hydra.run.dir={shown(folder)}: this folder cannot be written; name another one"
        )


def _quieten_libraries() -> None:
    """Leave the console to this program: no bars, no hints of libraries, and nothing twice."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    logging.getLogger(
        "huggingface_hub"
    ).handlers.clear()  # what it says reaches ours, which print it once
