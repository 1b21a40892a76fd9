"""The duties of rank 0 in a run: the run's folder, status, tracker and console output.

A cell is one run of a sweep. A tracker is a service such as Weights & Biases. `python -m flap` may
be invoked several times for the same run, for example again after an interruption. A later
invocation uses the results that an earlier invocation has stored.
"""

import json
import logging
import os
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, replace
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
from flap.runs.sweeps.callbacks import SWEEP_FILE, FolderCallback, failures, name_of_cell
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

# file in the run's folder that records which report was sent to which tracker
TRACKED = "tracked.json"


class Owner:
    """Manages the folder, status, tracker and console output of a run.

    Every process of the run has an `Owner`, but only rank 0 writes files, calls the tracker and
    prints.
    """

    checked: FlapConfig  # the config after all checks, set by `at_home`

    def __init__(self, config: DictConfig, hydra: Any) -> None:
        self.config = config
        self.hydra = hydra  # the section `hydra` of the config
        # closing this stack ends the run in the tracker and unlocks the folder
        self.held = ExitStack()
        self.run_dir = Path(hydra.runtime.output_dir)
        # the folder that this invocation writes into; it may be the folder of an earlier invocation
        self.folder = self.run_dir
        # the options that the user typed, as "key=value"
        self.overrides = list(hydra.overrides.task)
        self.in_sweep = bool(hydra.mode == RunMode.MULTIRUN)
        self._tracked: TrackedRun | None = None
        # a digest of the report that was in the folder before this invocation; "" without a report
        self._report_before = ""

    @property
    def cell(self) -> str:
        """The name under which the console shows this cell of a sweep, such as "cell 2 of 4"."""
        return name_of_cell(int(self.hydra.job.num))

    def timeout(self) -> timedelta:
        """Return how long the processes of this run wait for each other.

        The processes connect before the config is checked, so this method checks the option
        `timeout_minutes`. If the option is not valid, the folder that Hydra has created for a run
        outside a sweep is removed.

        Raises:
            ValueError: the option is not valid.
        """
        try:
            return timeout(self.config.timeout_minutes)
        except ValueError:
            with ExitStack() as stack:
                if ranks.is_first():
                    stack.enter_context(self._own_folder())
                raise

    def _own_folder(self) -> AbstractContextManager[None]:
        """Return a context manager that locks `run_dir`, the folder of this invocation of the run.

        If the run is refused, for example because of an invalid option, the files and folders that
        were created for the run are removed. In a sweep, these files and folders stay.
        """
        return run_folder(self.run_dir, None if self.in_sweep else FolderCallback.created)

    @by_first
    def open(self) -> Path | None:
        """Check the config, and return the folder of the run.

        In a dry run, print the estimate of memory and time, and return None. With
        stop_on_failure=true, also return None if another cell of the same sweep has failed.
        """
        self.held.enter_context(self._own_folder())
        state = read_state(self.run_dir)
        if state != "finished":
            check_path("hydra.run.dir", str(self.run_dir))
            _check_writable(self.run_dir)
        of_another_program = state is None and (self.run_dir / SETTINGS).exists()
        if state != "finished" and not of_another_program:
            self._record()
        check_measurements(self.config.get("eval"), self.overrides)
        config = typed(self.config)
        refuse(self.overrides, settled_by(config.plan))
        if not config.dry_run:
            check_launcher(self.hydra)

        quieten_libraries()  # after the checks, which should not wait for transformers' import
        if config.dry_run:
            _print_estimate(config)
            return None

        if config.stop_on_failure and self.in_sweep and self._another_has_failed():
            return None
        if "joblib" in self.hydra.launcher._target_ and config.model.device != "cpu":
            gpu = claim_gpu(Path(self.hydra.sweep.dir))
            if gpu is not None:
                log.info("GPU %s", gpu)

        from flap.results.tracking import Tracking

        build("tracking", config.tracking, Tracking).check()
        return self.run_dir

    def _another_has_failed(self) -> bool:
        """Return whether another cell has failed since this sweep began, and log its failure."""
        sweep = Path(self.hydra.sweep.dir)
        begin = (sweep / SWEEP_FILE).stat().st_mtime
        failed = failures(sweep, begin)
        if failed:
            log.info("%s: not started (stop_on_failure=true); %s", self.cell, failed[0])
        return bool(failed)

    def at_home(self, run: "Run") -> "Run":
        """Return a copy of the run with the folder that it writes into.

        In a sweep with resume=true, an earlier invocation may have stored the pruned model of the
        run. In this case, the run writes into the folder of the earlier invocation. Otherwise, it
        writes into `run_dir`. The two folders are different if the user has added cells to the
        sweep after the earlier invocation, so that the run now has another job number. Then both
        folders are locked.

        Raises:
            ValueError: `run_dir` holds a finished run of another config, or a report that this
                version of flap cannot read.
        """
        from flap.runs.preparation import in_folder

        self.checked = run.config
        self.folder = self._find_home(run)
        return in_folder(run, self.folder)

    @by_first
    def _find_home(self, run: "Run") -> Path:
        from flap.runs.home import check_home, earlier_start

        if run.config.resume:
            check_home(run)
        if not (run.config.resume and self.in_sweep):
            return self.run_dir
        folder = earlier_start(run) or self.run_dir
        if folder != self.run_dir:
            self.held.enter_context(run_folder(folder))
        return folder

    @by_first
    def begin(self) -> None:
        """Set the status of the run to "running".

        If the folder already holds a finished run, the status stays "finished". Check that the
        folder can be written to, unless the folder holds a finished run and resume=true. Warn if a
        checkpoint of an earlier run stays in the folder.
        """
        finished = read_state(self.folder) == "finished"
        if not finished or not self.checked.resume:
            # The folder of a finished run that is resumed is not checked, because the run may have
            # nothing left to write.
            _check_writable(self.folder)
        old = self.folder / "checkpoint"
        if not self.checked.checkpoint.save and old.exists():
            log.warning(
                "%s: this checkpoint of an earlier run stays, but its report is replaced "
                "(checkpoint.save=false)",
                old,
            )
        self._report_before = _report_digest(self.folder)
        if not finished:
            self._record()
            write_status(self.folder, "running")
            self._track()

    def finish(self, report: "Report") -> None:
        """Set the status to "finished", send the report to the tracker, and print new results."""
        from flap.results import headline, show

        is_new = _report_digest(self.folder) != self._report_before
        if read_state(self.folder) != "finished":
            write_status(self.folder, "finished")
        elif is_new and self.folder == self.run_dir:
            # replace .hydra, which still contains the config of the earlier run in this folder
            self._record()
        self._send(report)
        self.held.close()
        if self.in_sweep:
            found = "done already"
            if is_new:
                found = f"{headline(report)}, computed in {report.seconds['total']:.0f} s"
            print(f"{self.cell}, {self.checked.run_name}: {found}", flush=True)
        elif is_new:
            show(report, self.folder)
        else:
            log.info("done already, in %s (resume=false runs it again)", self.folder)

    def _track(self) -> None:
        from flap.results.tracking import Tracking

        # The config contains only the class of each chosen option. The key "choices" adds the names
        # of the options, such as WIFV.
        plain = asdict(self.checked) | {"choices": dict(self.hydra.runtime.choices)}
        tracking = build("tracking", self.checked.tracking, Tracking)
        self._tracked = self.held.enter_context(tracking.start(plain, self.folder, self._job()))

    def _send(self, report: "Report") -> None:
        """Send a report to the tracker, unless this report was sent before.

        The file tracked.json records which report was sent to which tracker.
        """
        tracker = self.config.tracking._target_
        sent = {tracker: _report_digest(self.folder)}
        if self._tracked is None and read_json(self.folder / TRACKED) != sent:
            self._track()
        if self._tracked is None:
            return
        self._tracked.finish(report)
        if "NoTracking" not in tracker:
            # if this file cannot be written, the next invocation sends the report again, which does
            # no harm
            with suppress(OSError):
                write_text(self.folder / TRACKED, json.dumps(sent))

    def _record(self) -> None:
        """Write the composed config, without secrets, into the folder .hydra.

        Hydra's own output (`hydra.output_subdir`) is turned off, because Hydra would include the
        secrets, and would write before flap has checked that no other run uses the folder.
        """
        hydra = HydraConfig.instance().cfg
        assert isinstance(hydra, DictConfig)
        parts = {
            "config": recorded(self.config),
            "hydra": recorded(hydra),
            "overrides": redacted(self.overrides),
        }
        for name, part in parts.items():
            write_text(self.run_dir / SETTINGS / f"{name}.yaml", OmegaConf.to_yaml(part))

    def _job(self) -> "JobInfo":
        """Return the id, name, group and tags of the run for its tracker."""
        from flap.results.tracking import JobInfo

        choices = self.hydra.runtime.choices
        tags = ("plan",) if self.config.plan else (choices["metric"], choices["structure"])
        job = JobInfo(str(self.folder.resolve()), str(self.config.run_name), tags=tags)
        if not self.in_sweep:
            return job
        return replace(job, group=Path(self.hydra.sweep.dir).resolve().name, job_type="sweep")


def _print_estimate(config: FlapConfig) -> None:
    """Print the memory, the disk space and the time that a run needs."""
    from flap.runs.dry_run import dry_run

    planned = dry_run(config)
    print(config.run_name, *planned.lines(), sep="\n", flush=True)
    print(*planned.time_lines(), sep="\n")  # printed last, because timing the layers takes seconds


def _report_digest(folder: Path) -> str:
    """Return a digest of the report.json in a folder; "" if the folder has no report.json."""
    file = folder / "report.json"
    return digest(file.read_text(encoding="utf-8")) if file.is_file() else ""


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"hydra.run.dir={shown(folder)}: this folder cannot be written; name another one"
        )


def quieten_libraries() -> None:
    """Turn off progress bars, transformers' warnings, and huggingface_hub's own log handlers."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    # flap's own log handlers also show the messages of huggingface_hub, so without this line each
    # of these messages would appear twice
    logging.getLogger("huggingface_hub").handlers.clear()
