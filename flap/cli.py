"""The Hydra shell: parse, run, show. Alone in knowing HydraConfig; the work is in `flap.pipeline.run`."""

import logging
import os
import sys
from difflib import get_close_matches
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from flap.config import config_dir, typed

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
    from flap.pipeline import (
        run,  # torch and transformers: seconds that --help and a wrong value need not wait for
    )
    from flap.reporting import show

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
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def explain(error: Exception) -> str:
    """One line about a command line that does not compose: key, value, and what is allowed."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name}: expected one of {', '.join(error.options)}"
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        section, _, key = str(cause.full_key).rpartition(".")
        allowed = sorted(str(name) for name in cause.parent_node or ())
        near = get_close_matches(key, allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{cause.full_key}: unknown key; {hint}{section or 'the config'} has {', '.join(allowed) or 'no keys'}"
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {cause.msg}".splitlines()[0]
    return " ".join(str(error).split())
