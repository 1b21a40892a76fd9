"""The command line: parse, run, show. Only this module uses HydraConfig; the work is in `flap.pipeline.run`.

`main` hands the command line to Hydra, which composes the config and calls `task` with it, in a sweep once for each
cell. Of several processes (torchrun, the tasks of a SLURM job) each one goes through the same run, but the first one
alone owns the run's folder, its status, the tracker and the console: `_Owner`. The others follow it without a word.
"""

import atexit
import glob
import logging
import os
import shutil
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING
from uuid import uuid4

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flap.config import FlapConfig, build, config_dir, explain, folder_name, help_text, typed, without_credentials
from flap.storage import ranks, read_state, write_status, write_text
from flap.storage.ranks import AgreedError, LostError
from flap.storage.status import note_failure, reason, run_folder
from flap.sweeps.callbacks import open_folder, write_open_study
from flap.sweeps.launching import claim_gpu, explain_launch, failures

if TYPE_CHECKING:
    from flap.results import Report
    from flap.runs import Run
    from flap.tracking import JobInfo, TrackedRun

log = logging.getLogger(__name__)


class RunFailedError(Exception):
    """A run of a sweep failed; its error is in its own log. Arguments: the sweep's folder, the error in one line."""


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
    owner = _Owner(config, Path(HydraConfig.get().runtime.output_dir))
    run_dir: Path | None = None
    try:
        ranks.join(timedelta(minutes=config.timeout_minutes))
        _follow()
        with owner.held:
            if (run_dir := ranks.on_first(owner.open)) is None:
                return None
            # imported here because --help and invalid values should not wait seconds for torch and transformers
            from flap.pipeline import execute
            from flap.runs import check_room, prepare

            run = prepare(typed(config), run_dir, keep_dense=_in_one_process())
            if ranks.on_first(lambda: owner.done_already(run)):
                return None
            check_room(run)
            ranks.on_first(owner.begin)
            report = execute(run)
            if ranks.is_first():
                owner.finish(report)
    except Exception as error:
        line = reason(error)
        if ranks.size() > 1 and not isinstance(error, AgreedError):
            _end(error, line, run_dir)
        log.exception("%s", line)
        return line
    return None


def _end(error: Exception, line: str, run_dir: Path | None) -> None:
    """End this process, which has failed while others go on, and say so, unless it is because another one has."""
    if run_dir and not (isinstance(error, LostError) and read_state(run_dir) == "failed"):
        note_failure(run_dir, line := f"{ranks.name()}: {line}")
        log.exception("%s", line)
        if not ranks.is_first():  # which logs nothing
            print(f"error: {line}", file=sys.__stderr__, flush=True)
    logging.shutdown()
    os._exit(1)  # what torch waits for at the end may never come


@dataclass
class _Owner:
    """What the first process has for all: the run's folder and its status, the tracker, and the console."""

    config: DictConfig
    run_dir: Path
    held: ExitStack = field(default_factory=ExitStack)  # the folder's lock and the tracker
    tracked: "TrackedRun | None" = None

    def open(self) -> Path | None:
        """Check the config, and return the folder of the run; None where nothing is to be run.

        With `dry_run`, print what the run would take.
        """
        self.held.enter_context(run_folder(self.run_dir))
        if read_state(self.run_dir) != "finished":
            _record(self.config, self.run_dir)
        checked = typed(self.config)
        from flap.runs.dry_run import dry_run

        _quieten_libraries()
        if checked.dry_run:
            print(checked.run_name, *dry_run(checked).lines(), sep="\n")
            return None
        _claim_gpu(checked)
        build("tracking", checked.tracking).check()
        return self.run_dir

    def done_already(self, run: "Run") -> bool:
        """Return whether this run has finished before, here or in a cell beside, on the same inputs; say where."""
        from flap.results import finished_run

        config, run_dir = run.config, self.run_dir
        named = f"*_{glob.escape(folder_name(config.run_name))}"  # the same cell, which may have another job number
        cells = sorted(run_dir.parent.glob(named)) if _in_sweep(run_dir) else []
        if not config.resume or (done := finished_run(run_dir, cells, asdict(config))) is None:
            return False
        folder, report = done
        if changed := [name for name, value in run.inputs.items() if report.inputs.get(name) != value]:
            log.info("%s holds a run on other inputs (%s), which runs again", folder, ", ".join(changed))
        else:
            log.info("done already, in %s (resume=false runs it again)", folder)
        return not changed

    def begin(self) -> None:
        """Say that the run is running; all checks have passed, and what the folder says of another run is replaced."""
        checked = typed(self.config)
        _record(self.config, self.run_dir)
        if not checked.checkpoint.save and (old := self.run_dir / "checkpoint").exists():
            log.warning("%s: of an earlier run, whose report is replaced; checkpoint.save=false leaves it", old)
        write_status(self.run_dir, "running")
        about = asdict(checked), self.run_dir, _job_info(checked, self.run_dir)
        self.tracked = self.held.enter_context(build("tracking", checked.tracking).start(*about))

    def finish(self, report: "Report") -> None:
        """Say that the run has finished, and print its report."""
        from flap.results import show

        assert self.tracked is not None
        write_status(self.run_dir, "finished")
        self.tracked.finish(report)
        self.held.close()
        show(report)


@cache
def _follow() -> None:
    """Let another process than the first one be silent, and write no file of Hydra's."""
    if ranks.is_first():
        return
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    unused = Path(gettempdir()) / f"flap-rank-{uuid4()}"  # Hydra's copy of a sweep's config
    atexit.register(shutil.rmtree, unused, ignore_errors=True)
    folders = ["hydra.run.dir=.", f"hydra.sweep.dir={unused}", "hydra.sweep.subdir=."]
    sys.argv += [*folders, "hydra/job_logging=none", "hydra/hydra_logging=none", "~hydra.callbacks.study"]


def _in_one_process() -> bool:
    """Return whether this process runs all cells of a sweep."""
    known = HydraConfig.get()
    return known.mode == RunMode.MULTIRUN and "submitit" not in known.launcher._target_


def _claim_gpu(config: FlapConfig) -> None:
    """Take a GPU of its own for a process of joblib."""
    known = HydraConfig.get()
    may_share = "joblib" in known.launcher._target_ and config.model.device != "cpu"
    if may_share and (gpu := claim_gpu(Path(known.sweep.dir))):
        log.info("GPU %s", gpu)


def _quieten_libraries() -> None:
    """Leave the console to this program: no bars, no hints of libraries, and nothing twice."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    logging.getLogger("huggingface_hub").handlers.clear()  # what it says reaches ours, which print it once


def _job_info(config: FlapConfig, run_dir: Path) -> "JobInfo":
    """Return the names of this run for its tracker."""
    from flap.tracking import JobInfo

    choices, in_sweep = HydraConfig.get().runtime.choices, _in_sweep(run_dir)
    return JobInfo(
        id=str(run_dir.resolve()),
        name=config.run_name,
        group=Path(HydraConfig.get().sweep.dir).resolve().name if in_sweep else None,
        job_type="sweep" if in_sweep else "run",
        tags=(choices["metric"], choices["structure"]),
    )


def _in_sweep(run_dir: Path) -> bool:
    """Return whether this run is a cell of a sweep; one of several processes has a command line of its own."""
    known = HydraConfig.get()
    return known.mode == RunMode.MULTIRUN or run_dir.resolve().parent == Path(known.sweep.dir).resolve()


def _record(config: DictConfig, run_dir: Path) -> None:
    """Write the composed config into .hydra, as Hydra does with `hydra.output_subdir`, but before it asks anybody."""
    hydra_config = HydraConfig.instance().cfg
    parts = {"config": config, "hydra": hydra_config, "overrides": HydraConfig.get().overrides.task}
    (run_dir / ".hydra").mkdir(exist_ok=True)
    for name, part in parts.items():
        write_text(run_dir / ".hydra" / f"{name}.yaml", without_credentials(OmegaConf.to_yaml(part)))


def main() -> None:
    """Run the command line; on an error, print one line that says what to change and exit with code 1."""
    if sys.argv[1:] == ["doctor"]:
        from flap import doctor

        doctor.main()
        return
    if sys.argv[1:] == ["--help"]:
        print(help_text())
        return
    _follow()
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
    failed = False  # of Hydra's own work, in which this may be the only process that fails
    begin = time.time()  # a sweep's folder may have cells of an earlier command
    try:
        task()
    except RunFailedError as error:
        folder, line = error.args
        lines = failures(Path(folder), begin)
        if not any(one.endswith(line) for one in lines):  # of a cell whose folder keeps what it has
            lines.append(f"failed: {line}")
    except (RuntimeError, FileNotFoundError) as error:  # runs catch their own errors: this one is from submitting
        folder, failed = open_folder(), True
        lines = [*(failures(folder, begin) if folder else []), f"error: {explain_launch(error)}"]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        lines = [f"error: {explain(error)}"]
    except KeyboardInterrupt:
        lines = ["interrupted: the same command goes on"]
    except OSError as error:  # from Hydra's own files in the run's folder
        what = f"{error.filename}: cannot be written ({error.strerror})" if error.filename else str(error)
        lines, failed = [f"error: {what}; hydra.run.dir and hydra.sweep.dir name another folder"], True
    else:
        return
    print(*lines, sep="\n", file=sys.stderr, flush=True)
    if failed and ranks.size() > 1:
        os._exit(1)  # while others go on
    raise SystemExit(1)
