"""What happens when a sweep ends."""

import logging
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from flap.config import build

log = logging.getLogger(__name__)


class StudyCallback(Callback):
    """Writes the study of a sweep, and logs its table where runs are tracked; a sweep never fails for it."""

    open_sweep: ClassVar[DictConfig | None] = None  # the config of the sweep that runs in this process

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        StudyCallback.open_sweep = config

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        StudyCallback.open_sweep = None
        _write(config)


def open_folder() -> Path | None:
    """The folder of the sweep that runs in this process, or that an error has just ended."""
    config = StudyCallback.open_sweep
    return None if config is None else Path(config.hydra.sweep.dir)


def write_open_study() -> None:
    """Write the study of a sweep that an error ended: then Hydra calls no `on_multirun_end`. Does nothing otherwise."""
    config, StudyCallback.open_sweep = StudyCallback.open_sweep, None
    if config is not None and any(Path(config.hydra.sweep.dir).glob("*/status.json")):
        _write(config)


def _write(config: DictConfig) -> None:
    folder = Path(config.hydra.sweep.dir)
    try:
        # torch and matplotlib: seconds that --cfg need not wait for
        from flap.reporting.study import read_study, records, write_study

        log.info("study: %s", write_study(folder))
        tracking = build("tracking", OmegaConf.to_container(config.tracking, resolve=True))
        tracking.log_study(folder.resolve(), *records(read_study(folder)))
    except Exception as error:
        log.warning("no study of %s: %s; python -m flap.study writes it later", folder, error)
