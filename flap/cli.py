"""The Hydra shell: parse, run, show. Alone in knowing HydraConfig; the work is in `flap.pipeline.run`."""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flap.config import config_dir, explain, typed

log = logging.getLogger(__name__)


class RunFailedError(Exception):
    """A run of a sweep failed; its own log has said why."""


class ConsoleFormatter(logging.Formatter):
    """One line an event: tracebacks are for the log file."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{prefix}{record.getMessage()}"


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def task(config: DictConfig) -> None:
    """One run of the command line, or one job of a sweep."""
    try:
        _run(config)
    except Exception as error:
        known = isinstance(error, ValueError)
        log.exception("%s", error if known else f"{type(error).__name__}: {error}")
        if HydraConfig.get().mode == RunMode.RUN:
            raise SystemExit(1) from error
        raise RunFailedError from error


def _run(config: DictConfig) -> None:
    checked = typed(config)
    # torch and transformers: seconds that --help and a wrong value need not wait for
    from transformers.utils.logging import set_verbosity_error

    from flap.pipeline import run
    from flap.reporting import show

    set_verbosity_error()
    show(run(checked, Path(HydraConfig.get().runtime.output_dir)))


def main() -> None:
    """Console entry: exit code 0, or 1 with one line that says what to change."""
    if "HYDRA_FULL_ERROR" in os.environ:  # the user asks for tracebacks
        task()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here instead of printing them
    try:
        task()
    except RunFailedError:
        raise SystemExit(1) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        raise SystemExit(1) from None
