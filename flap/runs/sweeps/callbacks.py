"""Hydra callbacks that write the study of a sweep, and functions that explain its failed runs.

A study shows the runs of a sweep in a table and in plots, on the page index.html. A cell is one run
of a sweep. The study is written again whenever a cell ends, but at most once a minute. A tracker is
a service such as Weights & Biases.
"""

import errno
import logging
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flap.config import (
    build,
    check_measurements,
    explain,
    has_secrets,
    one_line,
    protect_secrets_of,
    shown,
)
from flap.runs.sweeps.launching import check_jobs, make_jobs_private, remove_finished_jobs
from flap.storage.new_paths import missing_paths, remove_paths
from flap.storage.status import FIRST_FILES, LOG, STATUS, exit_on_error, read_status

log = logging.getLogger(__name__)

SWEEP_FILE = "multirun.yaml"  # Hydra writes this file before the first cell begins


class FolderCallback(Callback):
    """Records which folders and files a command creates.

    If the command is refused, for example because of an invalid option, these folders and files are
    removed again.
    """

    created: ClassVar[list[Path]] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record which folders and files a single run will create, before Hydra creates them."""
        # Hydra sets this config later, but resolving `hydra.run.dir` needs it now
        HydraConfig.instance().set_config(config)
        FolderCallback.created = _missing(config, "hydra.run.dir", FIRST_FILES)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record which folders and files a sweep will create, except the folders of its cells."""
        FolderCallback.created = _missing(config, "hydra.sweep.dir", [SWEEP_FILE])


def _missing(config: DictConfig, key: str, names: Iterable[str]) -> list[Path]:
    try:
        folder = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # Hydra reports the same error when it creates the folder
        return []
    return missing_paths(Path(str(folder)), names)


class StudyCallback(Callback):
    """Writes the study of a sweep, and sends its table to the tracker.

    If the study cannot be written, or its table cannot be sent, a warning is logged and the sweep
    continues.
    """

    # config of the sweep that is running in this process, or that has just ended with an error;
    # None if there is no such sweep
    open_sweep: ClassVar[DictConfig | None] = None
    cells: ClassVar[int | None] = None  # number of cells of the sweep; None if unknown

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the options of evaluations and of the launcher, and store the config of the sweep.

        If an error ends the sweep, `write_open_study` needs the stored config.
        """
        protect_secrets_of(config, config.hydra.job.env_set)
        StudyCallback.open_sweep = config
        with exit_on_error():  # Hydra would catch a ValueError here, and only log a warning
            check_measurements(config.get("eval"), config.hydra.overrides.task)
            check_jobs(config.hydra.launcher, config.model.placement)
        if has_secrets(config):
            with suppress(OSError):  # if the folder cannot be created, Hydra reports this later
                make_jobs_private(config.hydra.launcher)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the study again, but at most once a minute, as writing it takes some seconds."""
        page = Path(config.hydra.sweep.dir) / "index.html"
        fresh = page.exists() and time.time() - page.stat().st_mtime < 60
        if config.hydra.mode == RunMode.MULTIRUN and not fresh:
            _write(config, ended=False)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the study of the sweep."""
        StudyCallback.open_sweep = None
        if has_secrets(config):
            remove_finished_jobs(config.hydra.launcher)
        _write(config, ended=True)


def begin_cells(cells: int, folder: str) -> None:
    """Log the number of cells and the folder of a sweep before its first cell begins."""
    if StudyCallback.cells is None:
        log.info("%d cells, in %s", cells, folder)
    StudyCallback.cells = cells


def name_of_cell(number: int) -> str:
    """Return the name of a cell on the console, such as "cell 2 of 4".

    number: the index of the cell, which is 1 for "cell 2".
    """
    of_all = "" if StudyCallback.cells is None else f" of {StudyCallback.cells}"
    return f"cell {number + 1}{of_all}"


def write_open_study() -> None:
    """Write the study of a sweep that an error has ended.

    After an error, Hydra does not call `StudyCallback.on_multirun_end`. If no cell has begun,
    remove the folders that the command has created.
    """
    config = StudyCallback.open_sweep
    StudyCallback.open_sweep = None
    if config is None:
        return
    folder = Path(config.hydra.sweep.dir)
    # if the folder cannot be read or created, the error that has ended the sweep already says so
    with suppress(OSError):
        if has_secrets(config):
            remove_finished_jobs(config.hydra.launcher)
        if any(folder.glob(f"*/{STATUS}")):
            _write(config, ended=True)
        elif [path.name for path in folder.rglob("*") if path.is_file()] == [SWEEP_FILE]:
            remove_paths(FolderCallback.created, whole=folder)


def _write(config: DictConfig, ended: bool) -> None:
    """Write the study of a sweep, unless its runs are dry runs.

    If the sweep has ended, also print the table and the path of the page, and send the table to the
    tracker.
    """
    if config.get("dry_run"):
        return
    folder = Path(config.hydra.sweep.dir)
    try:
        # imported here because commands such as `--cfg` should not wait seconds for torch and
        # matplotlib
        from flap.results.study_files import read_study, save_study
        from flap.results.tracking import Tracking

        study = read_study(folder)
        page = save_study(study)
        if ended:
            from flap.results.study_console import show_study

            show_study(study)
            log.info("study: %s", page)
            chosen = OmegaConf.to_container(config.tracking, resolve=True)
            tracking = build("tracking", chosen, Tracking)
            table = study.records
            tracking.log_study(folder.resolve(), list(table), table.to_numpy().tolist())
    except Exception as error:
        log.warning("no study of %s: %s; python -m flap study writes it later", folder, error)


class RunFailedError(Exception):
    """Raised if a run of a sweep has failed. The log of the run contains the error.

    folder: the folder of the sweep. line: the error in one line. told: whether the console has
        already shown the error.
    """

    # Error lines of all failed cells. If a cell ran in another process, its line is added when
    # Hydra unpickles its error.
    lines: ClassVar[list[str]] = []

    def __init__(self, folder: str, line: str, told: bool = False) -> None:
        super().__init__(folder, line, told)
        self.lines.append(line)
        self.folder = Path(folder)
        self.told = told


def failure_lines(error: BaseException, begin: float) -> list[str]:
    """Return the lines that tell the user why a command has failed.

    An error of an unexpected type is raised again.

    error: the error that has ended the command.
    begin: the time at which the command began. Runs that failed before this time, in an earlier
        command, are not listed.
    """
    if isinstance(error, RunFailedError):
        if error.told:  # the console has already shown this error
            return []
        lines = failures(error.folder, begin)
        noted = tuple(lines)
        for line in dict.fromkeys(error.lines):
            if not any(one.endswith(line) for one in noted):
                lines.append(f"failed: {line}")
        return lines

    lines = []
    # find the OSError: if the log cannot be opened, Hydra raises a ValueError, whose cause is the
    # OSError
    cause = error.__cause__ if isinstance(error, ValueError) else error
    no_command = isinstance(error, FileNotFoundError) and "/" not in str(error.filename)
    if isinstance(error, RecursionError):
        reason = "the command line, or a file of the config, is nested too deeply"
    elif isinstance(error, RuntimeError) or no_command:  # the launcher failed
        if StudyCallback.open_sweep is not None:
            lines = failures(Path(StudyCallback.open_sweep.hydra.sweep.dir), begin)
        reason = explain_launch(error)
    elif isinstance(cause, OSError) and not isinstance(error, HydraException):
        # The condition excludes MissingConfigException, which Hydra raises for an unknown choice,
        # and which is both an OSError and a HydraException.
        reason = _explain_file(cause)
    elif isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        reason = explain(error)
    else:
        raise error
    return [*lines, f"error: {reason}"]


def _explain_file(error: OSError) -> str:
    """Explain why Hydra could not look up a choice, or could not write into the run's folder."""
    if not error.filename:
        return one_line(error)
    path = Path(error.filename)
    if error.errno == errno.ENAMETOOLONG:
        # If a choice or a key is unknown, Hydra looks for a file with the same name. So the path
        # contains the name, and the argument that contains this name is to blame.
        for argument in sys.argv[1:]:
            if path.stem in argument and not argument.startswith("hydra."):
                return f"{shown(argument)}: too long for the name of a key or of a choice"
    field = "hydra.run.dir" if StudyCallback.open_sweep is None else "hydra.sweep.dir"
    folder = path.parent if path.name in (LOG, SWEEP_FILE) else path
    return f"{field}={shown(folder)}: cannot be written ({error.strerror}); name another folder"


def failures(sweep: Path, since: float = 0) -> list[str]:
    """Return a line about each failed run of a sweep, without runs that failed before `since`."""
    lines = []
    for path in sorted(sweep.glob(f"*/{STATUS}")):
        status = read_status(path.parent)
        if path.stat().st_mtime >= since and status.get("state") == "failed":
            lines.append(f"failed: {path.parent}: {status.get('error')}")
    return lines


def explain_launch(error: BaseException) -> str:
    """Return one line that explains why jobs could not be submitted, or ended without a result."""
    if 'Could not detect "srun"' in str(error) or getattr(error, "filename", None) == "sbatch":
        return (
            "hydra/launcher=slurm: no sbatch on this machine; expected a SLURM login node, "
            "or hydra/launcher=submitit_local or joblib"
        )
    return "hydra/launcher: " + one_line(str(error).partition("Error stream produced:")[0])
