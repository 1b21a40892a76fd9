"""Hydra's sweeper, with a `multirun.yaml` that has no secrets.

Hydra looks for plugins in this namespace alone.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
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
        assert self.launcher is not None
        self.launcher = QuietLauncher(self.launcher)
        self.composed = config
        self.config = recorded(config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check that the configs of all jobs can be composed, and print how many jobs there are."""
        from flap.runs.sweeps.callbacks import begin_cells

        assert self.hydra_context is not None and self.overrides is not None
        for overrides in batch:
            self.hydra_context.config_loader.load_sweep_config(self.composed, list(overrides))
        begin_cells(sum(len(jobs) for jobs in self.overrides), self.composed.hydra.sweep.dir)


class QuietLauncher(Launcher):
    """A launcher that raises the error of the first failed job.

    The sweeper would raise it, too, but print all words of the command line before.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Do nothing: the launcher inside is ready."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs, and return their results."""
        results = self.launcher.launch(job_overrides, initial_job_idx)
        for result in results:
            with redirect_stderr(io.StringIO()):
                _ = result.return_value
        return results
