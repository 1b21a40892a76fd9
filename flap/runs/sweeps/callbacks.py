"""The Hydra callback that keeps the study of a sweep: written again as cells end."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from flap.runs.sweeps.launching import unfit
from flap.storage.status import STATUS

log = logging.getLogger(__name__)


class StudyCallback(Callback):
    """The callback that writes the study of a sweep, and tracks its table; its errors never fail the sweep."""

    open_sweep: ClassVar[DictConfig | None] = None  # that is running in this process, or was just ended by an error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the sweep, in case an error ends it; refuse one whose jobs could not work."""
        StudyCallback.open_sweep = config
        if line := unfit(config):
            raise SystemExit(f"error: {line}")  # of an exception Hydra would make a warning

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the page again, but at most once in a minute, as that takes some seconds."""
        page = Path(config.hydra.sweep.dir) / "index.html"
        fresh = page.exists() and time.time() - page.stat().st_mtime < 60
        if config.hydra.mode == RunMode.MULTIRUN and not config.get("dry_run") and not fresh:
            _write(config, ended=False)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the study of the sweep, unless its runs were dry ones."""
        StudyCallback.open_sweep = None
        if not config.get("dry_run"):
            _write(config, ended=True)


def write_open_study() -> None:
    """Write the study of a sweep that an error ended, which Hydra does not; if no cell has begun, remove its folder."""
    config, StudyCallback.open_sweep = StudyCallback.open_sweep, None
    if config is None:
        return
    folder = Path(config.hydra.sweep.dir)
    if any(folder.glob(f"*/{STATUS}")):
        _write(config, ended=True)
    elif [path.name for path in folder.glob("*")] == ["multirun.yaml"]:  # no cell has begun
        shutil.rmtree(folder)


def _write(config: DictConfig, ended: bool) -> None:
    """Write the study of a sweep; of one that has ended say where it is, and track its table."""
    folder = Path(config.hydra.sweep.dir)
    try:
        # imported here because --cfg should not wait seconds for torch and matplotlib
        from flap.results.study_files import read_study, write_study

        page = write_study(folder)
        if ended:
            log.info("study: %s", page)
            tracking = instantiate(config.tracking, _convert_="all")
            table = read_study(folder).records
            tracking.log_study(folder.resolve(), list(table), table.to_numpy().tolist())
    except Exception as error:
        log.warning("no study of %s: %s; python -m flap.study writes it later", folder, error)
