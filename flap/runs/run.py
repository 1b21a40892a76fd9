"""A run: everything that it needs besides weights, made and checked by `prepare`."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from flap.config import FlapConfig
from flap.data import Windows
from flap.data.temporary_state import seeded
from flap.evaluation import Suite, prepare_suite
from flap.method.allocation import Budget
from flap.method.calibration import Calibration, LayerStatistics
from flap.method.vocabulary import Trimmed
from flap.models import ModelSource, PlacedModel
from flap.results.report import reset_peak_memory
from flap.runs.choices import Choices
from flap.runs.keys import CacheKeys
from flap.runs.texts import overlaps
from flap.storage import NOT_KEPT, Cache, Kind, WorkFolder, digest, ranks
from flap.storage.work_folder import workspace

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a config. Its stages are functions of it; a stage that changes what later ones see returns another run.

    A stage works in `timed`, or in `cached` where its result is stored.
    """

    config: FlapConfig
    choices: Choices
    cache: Cache
    source: ModelSource
    texts: Mapping[
        str, Windows
    ]  # the windows of "calibration" and "recovery", where they are needed
    budget: Budget
    suite: Suite
    run_dir: Path | None  # the folder of the report; None: not written
    target: Path  # the folder of the checkpoint
    replaces_checkpoint: bool = (
        False  # whether an existing checkpoint in the target may be replaced
    )
    processes: Sequence[str] = ()  # the device of each process and its machine; empty: one
    trimmed: Trimmed | None = None  # the vocabulary, once tokens are removed
    work: WorkFolder = NOT_KEPT  # in which an interrupted run goes on
    seconds: dict[str, float] = field(default_factory=dict)  # of each stage
    cache_states: dict[str, str] = field(
        default_factory=dict
    )  # "hit", "miss" or "off" of each stage that is looked up

    @contextmanager
    def timed(self, stage: str) -> Iterator[WorkFolder]:
        """Time a stage, and give it the folder in which an interrupted one goes on."""
        start = time.perf_counter()
        yield self.work / stage
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def cached(
        self,
        stage: str,
        kind: Kind[T],
        key: Mapping[str, Any] | None,
        make: Callable[[WorkFolder], T],
    ) -> T:
        """Return the result of a stage, looked up by its key or made. key: None: made anew in each run."""
        with self.timed(stage) as work:
            if key is None:
                return make(work)
            result, self.cache_states[stage] = self.cache.get(kind, key, partial(make, work))
            return result

    def calibration(
        self, model: PlacedModel, statistics: Sequence[LayerStatistics] = ()
    ) -> Calibration:
        """Return the calibration windows, with statistics of the inputs of each output projection where there are."""
        windows = self.texts.get("calibration")
        batch_size = self.config.calibration.batch_size
        if windows is None:
            return Calibration(
                model, torch.empty(0, 0, dtype=torch.long), batch_size, list(statistics)
            )
        return Calibration(
            model, windows.marked_NT, batch_size, list(statistics), windows.text_N, windows.counted
        )

    @property
    def to_write(self) -> list[str]:
        """The uses, "calibration" and "recovery", of the texts that the model has still to write itself."""
        return [use for use, windows in self.texts.items() if windows.to_write]

    @property
    def keys(self) -> CacheKeys:
        """The keys of what this run stores."""
        trimmed = digest(self.trimmed.rows_K.tolist()) if self.trimmed else ""
        return CacheKeys(self.config, self.choices, self.source, self.texts, trimmed)

    @property
    def inputs(self) -> dict[str, str]:
        """A digest of everything that is not in the config and changes the result."""
        return self.keys.inputs | {
            task.name: digest([task.origin, task.text_sha256]) for task in self.suite.tasks
        }

    @property
    def sources(self) -> dict[str, str]:
        """The origin of the model and of each text."""
        texts = {
            use: "; ".join(text.origin for text in windows.named)
            for use, windows in self.texts.items()
        }
        given = {"plan": self.config.plan} if self.config.plan is not None else {}
        return {
            "model": self.source.origin,
            **given,
            **texts,
            **{task.name: task.origin for task in self.suite.tasks},
        }

    @property
    def warnings(self) -> list[str]:
        """What a reader of the numbers has to know of the run, its model and the texts."""
        debug = (
            ["this is a smoke run (debug): its numbers mean nothing"] if self.config.debug else []
        )
        quantised = (
            [f"the model is {self.source.origin}"] if "quantised" in self.source.origin else []
        )
        return [*debug, *quantised, *overlaps(self.texts, self.suite.tasks)]

    def trimmed_to(self, trimmed: Trimmed) -> "Run":
        """Return the run that measures with the tokenizer of a trimmed vocabulary."""
        before = self.source.tokenizer
        max_length = self.source.max_length
        suite = prepare_suite(self.choices.evaluators, trimmed.tokenizer, max_length, None, before)
        return replace(self, trimmed=trimmed, suite=replace(suite, results=self.suite.results))

    def reading(self, texts: Mapping[str, Windows]) -> "Run":
        """Return the run with other texts; new warnings are logged."""
        run = replace(self, texts=texts)
        for warning in run.warnings:
            if warning not in self.warnings:
                log.warning(warning)
        return run

    @contextmanager
    def begun(self) -> Iterator["Run"]:
        """Set random states in a block, which gets the run with its working folder."""
        reset_peak_memory()
        for warning in self.warnings:
            log.warning(warning)
        if self.suite.results and not self.config.resume and ranks.is_first():
            self.suite.results.path.unlink(
                missing_ok=True
            )  # numbers of an earlier start are not used
        looked_up = (self.choices.structure.measures or self.to_write) and self.cache.enabled
        with seeded(self.config.seed):
            if not (self.source.placed.streams or looked_up or self.choices.recovery):
                yield self
                return
            place = workspace(self.cache.root, self.keys.workspace, self.config.resume)
            with ranks.held_by_first(place) as folder:
                yield replace(self, work=WorkFolder(folder))
                self.suite.references.clear()  # which may be mapped files of the folder
