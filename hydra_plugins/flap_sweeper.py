"""A sweeper for Hydra that writes no secrets, such as API keys, to `multirun.yaml`.

This module is in the namespace package `hydra_plugins`, because Hydra finds plugins only there.
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
    """Hydra's basic sweeper, but `multirun.yaml` gets the config of the sweep without secrets.

    The jobs of the sweep still get the composed config with its secrets.
    """

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Set up the launcher with the composed config, and store a config without secrets."""
        # imported only here, because every program that uses Hydra imports this module
        from flap.config import recorded

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        self.launcher = QuietLauncher(self.launcher)
        self.composed = config
        self.config = recorded(config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check that the configs of all jobs can be composed.

        Also print the number of jobs and the folder of the sweep.
        """
        from flap.runs.sweeps.callbacks import begin_cells

        assert self.hydra_context is not None and self.overrides is not None
        for overrides in batch:
            self.hydra_context.config_loader.load_sweep_config(self.composed, list(overrides))
        begin_cells(sum(len(jobs) for jobs in self.overrides), self.composed.hydra.sweep.dir)


class QuietLauncher(Launcher):
    """A launcher that wraps another launcher, and raises the error of the first failed job.

    Hydra's basic sweeper would raise the same error, but would first print all overrides of the job
    to stderr.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Do nothing, because the wrapped launcher is already set up."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs, and return their results or raise the error of the first failed job."""
        results = self.launcher.launch(job_overrides, initial_job_idx)
        for result in results:
            with redirect_stderr(io.StringIO()):
                _ = result.return_value
        return results
