"""The job of a run: its choices, windows, budget, tasks and cache, and each step of the method with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flap.allocation import Budget, Measure, PruningPlan, Search
from flap.calibration import Calibration
from flap.calibration.calibrate import calibrate
from flap.calibration.images import Images
from flap.calibration.writing import WRITTEN, Draft, text_of, write
from flap.compression import (
    CompressLayer,
    Divergence,
    FitReport,
    compress,
    mask_layer,
    score_and_try,
    slice_layer,
)
from flap.config import FlapConfig
from flap.data import Windows
from flap.evaluation import Suite
from flap.evaluation.layer_times import LayerTimes
from flap.importance import SCORES, Scores, score_layers
from flap.jobs.choices import Choices
from flap.jobs.keys import CacheKeys
from flap.models import Given, PlacedModel, Source, adapt
from flap.storage import Cache, Kind, as_json, digest
from flap.storage.workspace import workspace

DIVERGENCES: Kind[list[float]] = as_json("divergences")  # of plans, in nats a token


@dataclass(frozen=True)
class Job:
    """Everything that a run needs besides weights; `prepare` makes it from a config."""

    config: FlapConfig
    choices: Choices
    source: Source | Given
    texts: Mapping[str, Windows]  # the windows of "calibration" and "recovery", where they are needed
    budget: Budget
    suite: Suite
    cache: Cache
    target: Path
    images: Images | None = None  # the windows of calibration with images
    replaces_checkpoint: bool = False  # whether an existing checkpoint in the target may be replaced

    @property
    def windows(self) -> Windows | None:
        """The calibration windows; None if nothing needs any."""
        return self.texts.get("calibration")

    @property
    def keys(self) -> CacheKeys:
        """The keys of what this job stores."""
        return CacheKeys(self.config, self.choices, self.source, self.texts, self.images)

    @property
    def compress_layer(self) -> CompressLayer:
        """The function that changes a layer: slicing, or masking with `mask_only`."""
        return mask_layer if self.config.mask_only else slice_layer

    def open(self, more_to_come: bool, folder: Path | None) -> PlacedModel:
        """Return the model at its placement, with the units that the structure removes. See `Source.open`."""
        model = self.source.open(more_to_come, folder)
        model.adapter = adapt(model.model, self.choices.structure.experts)
        return model

    def with_own_text(self, model: PlacedModel, folder: Path | None) -> tuple["Job", dict[str, dict[str, Any]]]:
        """Return the job with the texts that the model writes itself, and what that took, for each use of such a text.

        Runs with the same model and options share the cached texts.
        """
        texts, facts = dict(self.texts), {}
        for use, windows in texts.items():
            if windows.to_write is not None:
                draft = Draft.of(windows, self.source.max_length)
                key = self.keys.written(draft.key, model.device)
                make = partial(write, model, draft, folder and folder / f"write-{use}")
                written, state = self.cache.get(WRITTEN, key, make)
                facts[use] = {**{name: value for name, value in written.items() if name != "documents"}, "cache": state}
                texts[use] = windows.written(text_of(written))
        return replace(self, texts=texts), facts

    def with_layer_times(self, model: PlacedModel) -> "Job":
        """Return the job whose budget has the targets in time, from times measured on this device; they are cached.

        Raises:
            ValueError: there is no room for a narrower model beside this one, or no plan is as fast.
        """
        times = self._layer_times(model)
        budget = self.budget.within(times.bounds(self.config.target, times.measure(model)))
        self.choices.structure.check(budget)
        return replace(self, budget=budget)

    def settle(self, model: PlacedModel, plan_of: Callable[[Budget], PruningPlan]) -> tuple["Job", PruningPlan]:
        """Return a plan, and the job whose budget it is within; see `LayerTimes.settle`."""
        budget, plan = self._layer_times(model).settle(model, self.budget, plan_of)
        return replace(self, budget=budget), plan

    def _layer_times(self, model: PlacedModel) -> LayerTimes:
        key = self.keys.layer_times(model.device)
        return LayerTimes(self.budget, self.choices.request, self.choices.structure, self.cache, key)

    def calibrate(self, model: PlacedModel, folder: Path | None) -> Calibration:
        """Return the calibration of the model. Runs with the same model and windows share the cached statistics."""
        return calibrate(
            model,
            self.windows.by_length if self.windows else [],
            self.config.calibration.batch_size,
            self.choices.read_plain_statistics,
            self.cache,
            self.keys.statistics,
            folder and folder / "calibrate",
            self.images.windows if self.images else (),
            self.windows.text_by_length if self.windows else (),
        )

    def score(self, calibration: Calibration, folder: Path | None) -> Scores:
        """Return how much each unit matters; for a search with the divergences of its trials, from the same walk.

        Scores with covariances, and a search's, are cached: runs with another ratio share them.
        """
        metric, structure, model = self.choices.metric, self.choices.structure, calibration.model
        if isinstance(structure, Search):
            divergence = Divergence(calibration, self.choices.compensation, folder and folder / "score")
            make = partial(score_and_try, metric, structure, self.budget, divergence)
        else:
            place = folder / "score" if folder and metric.needs_covariance and model.on_disk else None
            visits = calibration.visit("score", metric.needs_covariance, place, apart=False)
            make = partial(score_layers, metric, model.adapter, visits, place)
            if not metric.needs_covariance:
                return make()
        return self.cache.get(SCORES, self.keys.scores(model.device), make)[0]

    def measure(self, calibration: Calibration, folder: Path | None) -> Measure:
        """Return the function that measures the divergence of plans; results are cached."""

        def measure(plans: Sequence[PruningPlan], num_tokens: int) -> list[float]:
            trials = self.keys.trials(plans, num_tokens)
            place = folder and folder / f"search-{digest(trials)}"
            divergence = Divergence(calibration, self.choices.compensation, place)
            key = self.keys.divergences(trials, calibration.model.device)
            return self.cache.get(DIVERGENCES, key, lambda: divergence(plans, num_tokens))[0]

        return measure

    def compress(self, calibration: Calibration, plan: PruningPlan, folder: Path | None) -> dict[str, FitReport]:
        """Remove the units that the plan does not keep, with compensation; return the fit reports by block."""
        model, compensation = calibration.model, self.choices.compensation
        # named by the plan, lest layers of two plans come together; changes in memory end with the process
        place = folder / f"compress-{digest(plan.to_dict())}" if folder and model.on_disk else None
        visits = calibration.visit("compress", compensation.needs_covariance, place, changing=True)
        return compress(model.adapter, plan, compensation, visits, self.compress_layer, place)

    def recover(self, model: PlacedModel, plan: PruningPlan, more_to_come: bool, folder: Path | None) -> dict[str, Any]:
        """Train the compressed model in place to predict what the dense one predicts; return what the report says."""
        from flap.recovery.distillation import recover  # here, so that other runs do not wait for transformers' Trainer

        assert self.choices.recovery and folder and isinstance(self.source, Source)
        [tokens_NT], place = self.texts["recovery"].by_length, folder / f"recover-{digest(plan.to_dict())}"
        return recover(self.choices.recovery, model, self.source, tokens_NT, place, self.config.seed, more_to_come)

    @contextmanager
    def workspace(self) -> Iterator[Path | None]:
        """Yield the folder that an interrupted run resumes from; None if this run stores nothing to resume from."""
        writes = any(windows.to_write is not None for windows in self.texts.values())
        resumes = self.source.on_disk or ((self.choices.structure.measures or writes) and self.cache.enabled)
        if not resumes and self.choices.recovery is None:
            yield None
            return
        with workspace(self.cache.root, self.keys.workspace, self.config.resume) as folder:
            yield folder
            self.suite.references.clear()  # which may be mapped files of the folder
