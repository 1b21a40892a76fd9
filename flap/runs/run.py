"""A run: everything that it needs besides weights, made and checked by `prepare`, and the ledger of its stages."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from flap.allocation import Budget
from flap.calibration import Calibration, LayerStatistics
from flap.config import FlapConfig
from flap.data import Windows
from flap.data.temporary_state import seeded
from flap.evaluation import Suite
from flap.models import ModelSource, PlacedModel
from flap.results import Report
from flap.runs.choices import Choices
from flap.runs.keys import CacheKeys
from flap.runs.ledger import Stage
from flap.runs.texts import begins_with_bos, domains, overlaps
from flap.storage import NOT_KEPT, Cache, WorkFolder, digest, ranks
from flap.storage.progress import begin
from flap.storage.work_folder import workspace
from flap.vocabulary import Ranking, Trimmed

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(kw_only=True)
class Run:
    """A run of a config, which does its stages: each is timed, looked up, and resumed where it was interrupted.

    The stages change the report, the texts that the model writes itself, and a budget that is measured.
    """

    config: FlapConfig
    choices: Choices
    cache: Cache
    report: Report
    source: ModelSource
    texts: dict[str, Windows]  # the windows of "calibration" and "recovery", where they are needed
    budget: Budget
    suite: Suite
    target: Path  # the folder of the checkpoint
    ranking: Ranking | None = field(default=None, init=False)  # the tokens in the order in which they stay
    kept_tokens: int | None = field(default=None, init=False)  # how many of them, once it is known
    trimmed: Trimmed | None = field(default=None, init=False)  # the vocabulary, once tokens have left
    replaces_checkpoint: bool = False  # whether an existing checkpoint in the target may be replaced
    reopen: Callable[[], PlacedModel] | None = field(default=None, init=False)  # opens the dense model once more
    passes_before: int = field(default=0, init=False)  # passes over the weights before calibration
    work: WorkFolder = NOT_KEPT  # in which an interrupted run goes on
    states: dict[str, str] = field(default_factory=dict)  # "hit", "miss" or "off" of each stage that is looked up

    def stage(self, stage: Stage[T], *inputs: Any) -> T:
        """Return the result of a stage, made or found; its seconds are added to those of its name in the report."""
        begin(stage.name)
        start, seconds = time.perf_counter(), self.report.seconds
        make, key = partial(stage.do, self, self.work / stage.name, *inputs), stage.depends(self, *inputs)
        if stage.kind is None or key is None:
            result = make()
        else:
            result, self.states[stage.name] = self.cache.get(stage.kind, key, make)
        stage.note(self, result, *inputs)
        seconds[stage.name] = seconds.get(stage.name, 0.0) + time.perf_counter() - start
        return result

    @property
    def own_texts(self) -> list[str]:
        """The uses, "calibration" and "recovery", of the texts that the model writes itself, where it writes any."""
        return [use for use, windows in self.texts.items() if windows.to_write is not None]

    def calibration(self, model: PlacedModel, statistics: Sequence[LayerStatistics]) -> Calibration:
        """Return the calibration windows, with statistics of the inputs of each output projection where there are."""
        windows = self.windows
        by_length, texts = (windows.by_length, windows.text_by_length) if windows else ([], ())
        batch_size = self.config.calibration.batch_size
        return Calibration(model, by_length, batch_size, list(statistics), texts=texts)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model as it is now."""
        return self.trimmed.tokenizer if self.trimmed else self.source.tokenizer

    @property
    def windows(self) -> Windows | None:
        """The calibration windows; None if nothing needs any."""
        return self.texts.get("calibration")

    @property
    def keys(self) -> CacheKeys:
        """The keys of what this run stores."""
        trimmed = digest(self.trimmed.rows_K.tolist()) if self.trimmed else ""
        return CacheKeys(self.config, self.choices, self.source, self.texts, trimmed)

    @property
    def inputs(self) -> dict[str, str]:
        """A digest of everything that is not in the config and changes the result."""
        return self.keys.inputs | {task.name: digest([task.origin, task.text_sha256]) for task in self.suite.tasks}

    @property
    def sources(self) -> dict[str, str]:
        """The origin of the model and of each text."""
        texts = {use: "; ".join(text.origin for text in windows.existing) for use, windows in self.texts.items()}
        return {"model": self.source.origin, **texts, **{task.name: task.origin for task in self.suite.tasks}}

    def introduce(self) -> None:
        """Report what is known of the texts: origins, domains and warnings; new warnings are logged."""
        report, tasks = self.report, self.suite.tasks
        report.sources, report.inputs = self.sources, self.inputs
        report.domains, report.bos = domains(self.texts, tasks), begins_with_bos(self.texts, tasks)
        for warning in overlaps(self.texts, tasks):
            if warning not in report.warnings:
                report.warnings.append(warning)
                log.warning(warning)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Set random states, and the folder that an interrupted run resumes from."""
        self.introduce()
        if self.suite.results and not self.config.resume and ranks.is_first():
            self.suite.results.path.unlink(missing_ok=True)  # numbers of an earlier start are not used
        resumes = self.source.placed.streams or (
            (self.choices.structure.measures or self.own_texts) and self.cache.enabled
        )
        self.report.dtype = str(self.source.dtype)
        with seeded(self.config.seed):
            if not resumes and self.choices.recovery is None:
                yield
                return
            place = workspace(self.cache.root, self.keys.workspace, self.config.resume)
            with ranks.held_by_first(place) as folder:
                self.work = WorkFolder(folder)
                yield
                self.suite.references.clear()  # which may be mapped files of the folder
