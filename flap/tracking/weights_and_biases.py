"""The tracker of the choice `tracking=wandb`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flap.storage.progress import listening
from flap.tracking.base import JobInfo, TrackedRun, Tracking
from flap.tracking.login import MODES, environment, require_key
from flap.tracking.mirror import Mirror


@dataclass(frozen=True)
class Wandb(Tracking):
    """Track runs with Weights & Biases. mode auto: online with a key, else offline; group None: the sweep's folder."""

    project: str = "flap"
    entity: str | None = None
    mode: str = "auto"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    log_checkpoint: bool = False

    def check(self) -> None:
        """Check the mode, the tags, and for mode online the key.

        Raises:
            ValueError: the mode is unknown, W&B would refuse a tag, or there is no key for mode online.
        """
        if self.mode not in MODES:
            raise ValueError(f"tracking.mode={self.mode}: expected one of {', '.join(MODES)}")
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ValueError(f"tracking.tags={tag}: expected tags of 1 to 64 characters")
        if self.mode == "online":
            require_key()

    @contextmanager
    def start(self, config: dict[str, Any], run_dir: Path, job: JobInfo) -> Iterator[TrackedRun]:
        """Track a run in W&B for as long as the block lasts; its exit code is 1 if the block raises."""
        mirror, exit_code = Mirror(self, run_dir), 1
        folder = run_dir.resolve() / "wandb"
        # W&B's caches and staged files are in the run's folder too
        with environment(WANDB_SILENT="true", WANDB_CACHE_DIR=f"{folder}/cache", WANDB_DATA_DIR=f"{folder}/data"):
            mirror.attempt(lambda: mirror.open(config, job))
            try:
                with listening(mirror.progress):
                    yield mirror
                exit_code = 0
            finally:
                mirror.send(lambda run: run.finish(exit_code=exit_code))
