"""The command line: parse, run, show. Only this module uses HydraConfig; the work is in `flap.pipeline.run`.

`main` hands the command line to Hydra, which composes the config and calls `task` with it, in a sweep once for each
cell. Of several processes (torchrun, the tasks of a SLURM job) each one goes through the same run, but the first one
alone owns the run's folder, its status, the tracker and the console: `_Owner`. The others follow it without a word.
"""

import json
import logging
import os
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flap import __version__
from flap.config import FlapConfig, build, config_dir, help_text, refuse, settled_by, typed, without_credentials
from flap.runs.sweeps.callbacks import write_open_study
from flap.runs.sweeps.failures import RunFailedError, failure_lines
from flap.runs.sweeps.launching import check_launcher, claim_gpu, end_alone, follow
from flap.storage import digest, ranks, read_json, read_state, write_status, write_text
from flap.storage.ranks import AgreedError
from flap.storage.status import LOG, reason, run_folder

if TYPE_CHECKING:
    from flap.results import FinishedRun, Report
    from flap.results.tracking import JobInfo, TrackedRun
    from flap.runs.run import Run

log = logging.getLogger(__name__)

SUBCOMMANDS = {
    "doctor": "flap.doctor",
    "export": "flap.checkpoint.export.__main__",
    "workspace": "flap.results.tracking.workspace",
}
TRACKED = "tracked.json"  # of a run's folder: the tracker that has its report, and which one


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def task(config: DictConfig) -> None:
    """Run the composed config: the single run of a command line, or one job of a sweep."""
    if (line := _attempt(config)) is None:
        return
    if HydraConfig.get().mode == RunMode.RUN:
        raise SystemExit(1)
    raise RunFailedError(HydraConfig.get().sweep.dir, line)


def _attempt(config: DictConfig) -> str | None:
    """Run and return None, or log the error and return it in one line.

    The exception is not passed on, because its traceback would keep the model in memory.
    """
    owner, run_dir = _Owner(config, HydraConfig.get()), None
    try:
        ranks.join(timedelta(minutes=config.timeout_minutes))
        follow()
        with owner.held:
            if (run_dir := ranks.on_first(owner.open)) is None:
                return None
            # imported here because --help and invalid values should not wait seconds for torch and transformers
            from flap.pipeline import execute, measure_more
            from flap.runs.preparation import check_room, prepare

            run = prepare(typed(config), run_dir)
            earlier, done = ranks.on_first(partial(owner.find_finished, run))
            if done:
                return None
            if not (saved := earlier if earlier and earlier.checkpoint else None):
                check_room(run)
            ranks.on_first(partial(owner.begin, run))
            report = measure_more(run, saved) if saved else execute(run, earlier.report if earlier else None)
            if ranks.is_first():
                owner.finish(report)
    except Exception as error:
        line = reason(error)
        if ranks.size() > 1 and not isinstance(error, AgreedError):
            end_alone(error, line, run_dir)
        kept = owner.run_dir / LOG
        log.exception("%s", line if owner.in_sweep or not kept.exists() else f"{line}; log: {kept}")
        return line
    return None


@dataclass
class _Owner:
    """What the first process has for all: the run's folder and its status, the tracker, and the console."""

    config: DictConfig
    hydra: Any  # Hydra's own part of the config
    held: ExitStack = field(default_factory=ExitStack)  # the folder's lock and the tracker
    tracked: "TrackedRun | None" = None

    def __post_init__(self) -> None:
        self.place = self.run_dir  # where the results are: a cell that is done already may have another number

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return Path(self.hydra.runtime.output_dir)

    @property
    def in_sweep(self) -> bool:
        """Whether the run is a cell of a sweep."""
        return bool(self.hydra.mode == RunMode.MULTIRUN)

    def open(self) -> Path | None:
        """Check the config, and return the folder of the run; None for a dry run, which is printed."""
        self.held.enter_context(run_folder(self.run_dir, keep=self.in_sweep))
        if read_state(self.run_dir) != "finished":
            self._record()
        config = typed(self.config)
        refuse(self.hydra.overrides.task, settled_by(config.plan))
        from flap.runs.dry_run import dry_run

        _quieten_libraries()
        if config.dry_run:
            print(config.run_name, *dry_run(config).lines(), sep="\n")
            return None
        check_launcher(self.hydra)
        shares_gpus = "joblib" in self.hydra.launcher._target_ and config.model.device != "cpu"
        if shares_gpus and (gpu := claim_gpu(Path(self.hydra.sweep.dir))):
            log.info("GPU %s", gpu)
        build("tracking", config.tracking).check()
        return self.run_dir

    def find_finished(self, run: "Run") -> "tuple[FinishedRun | None, bool]":
        """Return a finished run of the same pruned model, here or in a cell beside, and whether nothing is to be done.

        The folder of a cell beside is then held. A tracker that has not got a finished run gets it.
        """
        from flap.results import finished_run

        config = run.config
        earlier = finished_run(self.run_dir, asdict(config), run.inputs, self.in_sweep) if config.resume else None
        if earlier and earlier.folder != self.run_dir:
            self.place = earlier.folder
            self.held.enter_context(run_folder(self.place))
        if not earlier or earlier.lacks(config.eval):
            return earlier, False
        log.info("done already, in %s (resume=false runs it again)", self.place)
        if self._has_tracker and read_json(self.place / TRACKED) != self._sent:
            self._track(config)
            self._send(earlier.report)
        return earlier, True

    def begin(self, run: "Run") -> None:
        """Say that the run is running; a finished one in its folder stays finished until another is in its place."""
        if not run.config.checkpoint.save and (old := self.place / "checkpoint").exists():
            log.warning("%s: of an earlier run, whose report is replaced; checkpoint.save=false leaves it", old)
        if read_state(self.place) != "finished":
            write_status(self.place, "running")
        self._track(run.config)

    def _track(self, config: FlapConfig) -> None:
        plain = asdict(config) | {"choices": dict(self.hydra.runtime.choices)}  # {"metric": "WIFV"}, beside its class
        started = build("tracking", config.tracking).start(plain, self.place, self._job_info())
        self.tracked = self.held.enter_context(started)

    def finish(self, report: "Report") -> None:
        """Say that the run has finished, and print its report."""
        from flap.results import show

        if self.place == self.run_dir and read_state(self.place) == "finished":  # another run's, until now
            self._record()
        write_status(self.place, "finished")
        self._send(report)
        self.held.close()
        show(report, self.place)

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
        return {self.config.tracking._target_: digest((self.place / "report.json").read_text())}

    def _record(self) -> None:
        """Write the composed config into .hydra, as Hydra does with `hydra.output_subdir`, but only now."""
        parts = {"config": self.config, "hydra": HydraConfig.instance().cfg, "overrides": self.hydra.overrides.task}
        (self.run_dir / ".hydra").mkdir(exist_ok=True)
        for name, part in parts.items():
            write_text(self.run_dir / ".hydra" / f"{name}.yaml", without_credentials(OmegaConf.to_yaml(part)))

    def _job_info(self) -> "JobInfo":
        """Return the names of the run for its tracker."""
        from flap.results.tracking import JobInfo

        choices, name = self.hydra.runtime.choices, str(self.config.run_name)
        sweep = {"group": Path(self.hydra.sweep.dir).resolve().name, "job_type": "sweep"} if self.in_sweep else {}
        tags = (choices["metric"], choices["structure"]) if self.config.plan is None else ("plan",)
        return JobInfo(str(self.place.resolve()), name, tags=tags, **sweep)


def _quieten_libraries() -> None:
    """Leave the console to this program: no bars, no hints of libraries, and nothing twice."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    logging.getLogger("huggingface_hub").handlers.clear()  # what it says reaches ours, which print it once


def main() -> None:
    """Run the command line; on an error, print one line that says what to change and exit with code 1."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of a terminal that has not all characters
    if module := SUBCOMMANDS.get("".join(sys.argv[1:2])):
        import_module(module).main(sys.argv[2:])
        return
    if sys.argv[1:] in (["--help"], ["--version"]):
        print(help_text() if sys.argv[1] == "--help" else f"flap {__version__}")
        return
    follow()
    logging.raiseExceptions = False  # a log that cannot be written prints no traceback on the console
    try:
        if "HYDRA_FULL_ERROR" in os.environ:  # the user asks for tracebacks
            task()
        else:
            _one_line_errors()
    finally:
        write_open_study()  # Hydra calls no callback if a job has failed


def _one_line_errors() -> None:
    """Run the command line, and print errors in one line each."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes errors on instead of printing them
    begin = time.time()  # a sweep's folder may have cells of an earlier command
    try:
        task()
    except (Exception, KeyboardInterrupt) as error:
        print(*failure_lines(error, begin), sep="\n", file=sys.stderr, flush=True)
        if ranks.size() > 1 and not isinstance(error, RunFailedError):
            os._exit(1)  # Hydra's own work has failed here, while others may go on
        raise SystemExit(1) from None
