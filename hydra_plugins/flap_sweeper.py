"""Hydra's sweeper, with a `multirun.yaml` that has no secrets.

Hydra looks for plugins in this namespace alone.
"""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RecordingSweeper(BasicSweeper):
    """The basic sweeper of Hydra. The config that it writes into the sweep's folder has no secrets.

    The jobs get the config as it was composed.
    """

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Prepare the launcher with the composed config, and `self.config` without secrets."""
        from flap.config import recorded  # here: Hydra imports its plugins in any program

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.composed = config
        self.config = recorded(config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check that the configs of all jobs can be composed."""
        assert self.hydra_context is not None
        for overrides in batch:
            self.hydra_context.config_loader.load_sweep_config(self.composed, list(overrides))
