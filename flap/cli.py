"""The command line.

This module parses the arguments and shows the results. `flap.pipeline` runs the stages of a run,
such as calibration, pruning and evaluation.

`main` hands the command line to Hydra, which composes the config and calls `task` with this config.
In a sweep (Hydra's multirun), Hydra calls `task` once for each cell, which is one run of the sweep.
The study of a sweep is an HTML page with the results of all cells. A run can have several
processes, which torchrun or SLURM starts. All processes execute the same run, but only rank 0
writes into the run's folder, prints to the console, and sends results to a tracker such as Weights
& Biases (`flap.runs.owner`).
"""

import logging
import os
import sys
import time
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from flap.config import (
    check_arguments,
    config_dir,
    config_folders,
    help_text,
    objectives,
    options_first,
    protect_output,
    protect_secrets_of,
    typed,
    with_values,
)
from flap.runs.owner import Owner
from flap.runs.sweeps.callbacks import RunFailedError, failure_lines, write_open_study
from flap.runs.sweeps.continuing import again_line, interrupted_line
from flap.runs.sweeps.launching import end_alone, follow
from flap.runtime import ranks
from flap.runtime.ranks import AgreedError
from flap.storage.status import LOG, exit_on_error, reason

if TYPE_CHECKING:
    from flap.results.objective import Objective

log = logging.getLogger(__name__)

INTERRUPTED = 130  # the exit code after Ctrl-C: 128 + SIGINT, as in a shell
SUBCOMMANDS = {
    "doctor": "flap.commands.doctor",
    "export": "flap.checkpoint.export.__main__",
    "reproduce": "flap.commands.reproduce",
    "study": "flap.commands.study",
    "workspace": "flap.results.tracking.workspace",
}


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def task(config: DictConfig) -> "Objective":
    """Execute the run that a composed config describes: a single run, or one cell of a sweep.

    Return the measured numbers, such as a perplexity, that the option `objective` names. Hydra
    sweepers that search for good options optimise these numbers.
    """
    # `main` has called `protect_output` already, but a launcher may run `task` in a new process
    protect_output()
    protect_secrets_of(config, HydraConfig.get().job.env_set)
    outcome = _attempt(config)
    if outcome.error is None:
        return outcome.objective

    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.RUN:
        raise SystemExit(1)
    launcher = hydra_config.launcher._target_
    if config.stop_on_failure and "BasicLauncher" in launcher:
        raise SystemExit(again_line("stopped at the first failed cell (stop_on_failure=true)"))
    # a job of a submitit launcher has no console, so its error has not been printed yet; with other
    # launchers, the console has already shown the error
    told = "submitit" not in launcher
    raise RunFailedError(hydra_config.sweep.dir, outcome.error, told)


class Outcome(NamedTuple):
    """How a run has ended. Both fields are None if the run was not executed, as in a dry run."""

    error: str | None = None  # the error in one line; None if there was no error
    objective: "Objective" = None  # the measured numbers that the option `objective` names


def _attempt(config: DictConfig) -> Outcome:
    """Execute the run that a config describes, and return how it ended.

    An error is logged with its traceback. Only the error's message is returned, because the
    traceback of the exception would keep the model in memory.
    """
    owner = Owner(config, HydraConfig.get())
    run_dir = None
    try:
        ranks.join(owner.timeout())
        follow()
        with owner.held:
            run_dir = owner.open()
            if run_dir is None:
                return Outcome()
            # imported here because these modules import torch and transformers, which takes
            # seconds; --help and the refusal of invalid values should not wait for this
            from flap.pipeline import check_room, execute
            from flap.results.objective import objective_of
            from flap.runs.preparation import prepare

            run = owner.at_home(prepare(typed(config), run_dir, overrides=owner.overrides))
            check_room(run)
            owner.begin()
            report = execute(run)
            if ranks.is_first():
                owner.finish(report)
            return Outcome(objective=objective_of(report, objectives(run.config.objective)))
    except Exception as error:
        line = reason(error)
        if ranks.size() > 1 and not isinstance(error, AgreedError):
            end_alone(error, line, run_dir)
        _log_error(owner, line)
        return Outcome(error=line)


def _log_error(owner: Owner, line: str) -> None:
    log_file = owner.run_dir / LOG
    if owner.in_sweep:
        log.exception("%s: %s", owner.cell, line)
    elif log_file.exists():
        log.exception("%s; log: %s", line, log_file)
    else:
        log.exception("%s", line)


def main() -> None:
    """Run the command line.

    On an error, print one line that says what to change, and exit with code 1. After Ctrl-C, print
    the command that resumes the interrupted run or sweep, and exit with code 130.
    """
    arguments = sys.argv[1:]
    _find_modules_here()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # print "?" where the terminal lacks a character
    protect_output()
    if arguments and arguments[0] in SUBCOMMANDS:
        try:
            import_module(SUBCOMMANDS[arguments[0]]).main(arguments[1:])
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        return
    if {"-h", "--help"} & {*arguments}:
        print(help_text(config_folders(arguments)))
        return
    if arguments == ["--version"]:
        print(f"flap {version('flap-pruning')}")
        return

    follow()
    sys.argv[1:] = with_values(options_first(sys.argv[1:]))
    with exit_on_error():
        check_arguments(arguments, SUBCOMMANDS)
    # without this, `logging` prints a traceback if the log cannot be written, as on a full disk
    logging.raiseExceptions = False
    try:
        if "HYDRA_FULL_ERROR" in os.environ:  # the user has asked for tracebacks
            task()
        else:
            _run_with_short_errors()
    finally:
        with suppress(KeyboardInterrupt):  # ignore a second Ctrl-C
            # if a run has failed, Hydra does not call `on_multirun_end`, which writes the study
            write_open_study()


def _find_modules_here() -> None:
    """Make modules in the current folder importable for the command `flap`.

    `python -m flap` can import them anyway, because Python adds the current folder to `sys.path`.
    """
    with suppress(OSError):  # the current folder may have been removed
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)


def _run_with_short_errors() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them
    # If a sweep is continued, its folder may contain runs that failed in an earlier command. Only
    # failures after `begin` are printed.
    begin = time.time()
    try:
        task()
    except KeyboardInterrupt:
        line = interrupted_line()
        with suppress(KeyboardInterrupt):  # ignore a second Ctrl-C while the study is written
            write_open_study()
        print(line, file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        for line in failure_lines(error, begin):
            print(line, file=sys.stderr, flush=True)
        if isinstance(error, RunFailedError):
            again = again_line("some cells have failed")
            write_open_study()
            print(again, file=sys.stderr, flush=True)
        if ranks.size() > 1 and not isinstance(error, RunFailedError):
            os._exit(1)  # a normal exit could wait forever for the other processes of this run
        raise SystemExit(1) from None
