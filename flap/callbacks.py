"""What happens when a sweep ends."""

import logging
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class StudyCallback(Callback):
    """Writes the study of a sweep; a sweep never fails for it."""

    open_sweep: ClassVar[Path | None] = None  # the folder of the sweep that runs in this process

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        StudyCallback.open_sweep = Path(config.hydra.sweep.dir)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        StudyCallback.open_sweep = None
        _write(Path(config.hydra.sweep.dir))


def write_open_study() -> None:
    """Write the study of a sweep that an error ended: then Hydra calls no `on_multirun_end`. Does nothing otherwise."""
    folder, StudyCallback.open_sweep = StudyCallback.open_sweep, None
    if folder is not None and any(folder.glob("*/status.json")):
        _write(folder)


def _write(folder: Path) -> None:
    try:
        from flap.reporting.study import write_study  # torch and matplotlib: seconds that --cfg need not wait for

        log.info("study: %s", write_study(folder))
    except Exception as error:
        log.warning("no study of %s: %s; python -m flap.study writes it later", folder, error)
