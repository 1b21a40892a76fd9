"""The command line: parse, run, show; the work is in `flap.pipeline.run`.

`main` hands the command line to Hydra, which composes the config and calls `task` with it, in a sweep once for each
cell. Of several processes (torchrun, the tasks of a SLURM job) each one goes through the same run, but the first one
alone owns the run's folder, its status, the tracker and the console: `flap.runs.owner`. The others follow it silently.
"""

import logging
import os
import sys
import time
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from flap.config import config_dir, help_text, protect_output, protect_secrets_of, typed
from flap.runs.owner import Owner
from flap.runs.sweeps.callbacks import RunFailedError, failure_lines, write_open_study
from flap.runs.sweeps.launching import end_alone, follow
from flap.storage import ranks
from flap.storage.ranks import AgreedError
from flap.storage.status import LOG, reason

log = logging.getLogger(__name__)

SUBCOMMANDS = {
    "doctor": "flap.doctor",
    "export": "flap.checkpoint.export.__main__",
    "study": "flap.study",
    "workspace": "flap.results.tracking.workspace",
}


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def task(config: DictConfig) -> None:
    """Run the composed config: the single run of a command line, or one job of a sweep."""
    protect_output()  # again, because a launcher may start this in a process of its own
    protect_secrets_of(config, HydraConfig.get().job.env_set)
    if (line := _attempt(config)) is None:
        return
    if HydraConfig.get().mode == RunMode.RUN:
        raise SystemExit(1)
    raise RunFailedError(HydraConfig.get().sweep.dir, line)


def _attempt(config: DictConfig) -> str | None:
    """Run and return None, or log the error and return it in one line.

    The exception is not passed on, because its traceback would keep the model in memory.
    """
    owner = Owner(config, HydraConfig.get())
    run_dir = None
    try:
        ranks.join(owner.timeout())
        follow()
        with owner.held:
            if (run_dir := owner.open()) is None:
                return None
            # imported here because --help and invalid values should not wait seconds for torch and transformers
            from flap.pipeline import check_room, execute
            from flap.runs.preparation import prepare

            run = owner.at_home(prepare(typed(config), run_dir))
            check_room(run)
            owner.begin(run)
            report = execute(run)
            if ranks.is_first():
                owner.finish(report, run.config)
    except Exception as error:
        line = reason(error)
        if ranks.size() > 1 and not isinstance(error, AgreedError):
            end_alone(error, line, run_dir)
        kept = owner.run_dir / LOG
        log.exception("%s", line if owner.in_sweep or not kept.exists() else f"{line}; log: {kept}")
        return line
    return None


def main() -> None:
    """Run the command line; on an error, print one line that says what to change and exit with code 1."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of a terminal that has not all characters
    protect_output()
    if module := SUBCOMMANDS.get("".join(sys.argv[1:2])):
        import_module(module).main(sys.argv[2:])
        return
    if sys.argv[1:] in (["--help"], ["--version"]):
        print(help_text() if sys.argv[1] == "--help" else f"flap {version('flap-pruning')}")
        return
    follow()
    logging.raiseExceptions = (
        False  # a log that cannot be written prints no traceback on the console
    )
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
