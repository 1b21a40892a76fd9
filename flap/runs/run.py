"""A run with all its inputs except the weights of the model.

`prepare` creates and checks these inputs. A plan lists the units (heads, neurons or experts) that
stay in the pruned model.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from flap.checkpoint.save import followed
from flap.config import FlapConfig, redact
from flap.data import Batch, Windows
from flap.evaluation import Task
from flap.evaluation.result_files import Results
from flap.method.allocation import Budget, PruningPlan
from flap.method.calibration import Calibration, LayerStatistics
from flap.models import ModelSource, PlacedModel
from flap.results import described
from flap.runs.choices import Choices
from flap.runs.memory import Memory
from flap.runs.texts import measured_again
from flap.runtime.agenda import Agenda
from flap.storage import NOT_KEPT, Cache, WorkFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with its inputs. Each stage, such as calibration, is a function that takes a run.

    If a stage changes inputs of later stages, for example the texts, the stage returns a changed
    copy of the run.
    """

    config: FlapConfig
    choices: Choices
    cache: Cache
    source: ModelSource
    # The texts that the run needs, with their token windows. The keys are the uses of the texts:
    # "calibration", "recovery" (training after compression) and "vocabulary".
    texts: Mapping[str, Windows]
    budget: Budget
    tasks: Sequence[Task]  # the evaluation tasks of the run
    run_dir: Path | None  # the folder of the report; None if no report is written
    results: Results  # the file with the results of the evaluation tasks
    key: str = ""  # digest of the config and the inputs; identifies the pruned model
    # rank, machine and device of each process; empty if there is only one process
    processes: Sequence[str] = ()
    work: WorkFolder = NOT_KEPT  # the working directory, from which an interrupted run resumes
    memory: Memory = field(default_factory=Memory)
    agenda: Agenda = field(default_factory=Agenda)  # the evaluation tasks that are still to be done

    @cached_property
    def described(self) -> dict[str, Any]:
        """The config as dicts and lists, without secrets."""
        return described(self.config)

    @contextmanager
    def timed(self, stage: str) -> Iterator[WorkFolder]:
        """Time a stage whose result is not stored in the cache or in the run's folder.

        Yield the stage's folder in the working directory. After an interruption, the stage resumes
        from the files in this folder.
        """
        with self.memory.timed(stage):
            yield self.work / stage

    @property
    def target(self) -> Path:
        """The folder of the checkpoint."""
        in_run_dir = (self.run_dir or Path()) / "checkpoint"
        return followed(Path(self.config.checkpoint.dir or in_run_dir))

    @property
    def tasks_of_one_model(self) -> list[Task]:
        """The tasks that measure one model at a time."""
        return [task for task in self.tasks if not task.side_by_side]

    @property
    def tasks_of_both(self) -> list[Task]:
        """The tasks that measure the dense and the pruned model side by side."""
        return [task for task in self.tasks if task.side_by_side]

    @property
    def given_plan(self) -> PruningPlan | None:
        """The plan that the option `plan` names; None if the units are selected by scores."""
        given = self.choices.given
        return None if given is None else self.budget.named(given.plan)

    def calibration(
        self, model: PlacedModel, statistics: Sequence[LayerStatistics] = ()
    ) -> Calibration:
        """Return a `Calibration`, which runs the model on the calibration windows of this run.

        statistics: the statistics of each layer; empty if they have not been collected yet.
        """
        windows = self.texts.get("calibration")
        batch_size = self.choices.calibration.batch_size
        if windows is None:
            nothing = Batch.of(torch.empty(0, 0, dtype=torch.long))
            return Calibration(model, nothing, batch_size, list(statistics))
        return Calibration(
            model,
            windows.batch,
            batch_size,
            list(statistics),
            windows.text_N,
            windows.in_answers.mask_NT,
        )

    @property
    def to_write(self) -> list[str]:
        """The uses ("calibration", "recovery") of the texts that the model has yet to generate."""
        return [use for use, windows in self.texts.items() if windows.to_write]

    @property
    def sources(self) -> dict[str, str]:
        """Where the model, the texts, and the plan (option `plan`) come from, without secrets."""
        sources = {"model": self.source.origin}
        if self.config.plan is not None:
            sources["plan"] = self.config.plan
        for use, windows in self.texts.items():
            sources[use] = "; ".join(text.origin for text in windows.named)
        return {name: redact(origin) for name, origin in sources.items()}

    @property
    def warnings(self) -> list[str]:
        """Warnings for readers of the report, about the run, the model and the texts."""
        warnings = []
        if self.config.debug:
            warnings.append("this is a smoke run (debug): its numbers mean nothing")
        if "quantised" in self.source.origin:
            warnings.append(f"the model is {self.source.origin}")
        return [*warnings, *measured_again(self.texts, self.tasks)]

    def reading(self, texts: Mapping[str, Windows]) -> "Run":
        """Return a copy of the run with these texts, and log warnings that the texts cause."""
        run = replace(self, texts=texts)
        for warning in run.warnings:
            if warning not in self.warnings:
                log.warning(warning)
        return run
