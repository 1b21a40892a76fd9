"""The job of a run: all that it needs besides weights, as choices, windows, budget, tasks and cache."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flap.allocation import Budget, Measure, PruningPlan, Structure
from flap.calibration import STATISTICS_VERSION, Calibration
from flap.calibration.calibrate import calibrate
from flap.calibration.writing import WRITTEN, Draft, text_of, write
from flap.compression import Compensation, CompressLayer, Divergence, mask_layer, slice_layer
from flap.config import FlapConfig
from flap.data import Windows
from flap.evaluation import Efficiency, Evaluator, Suite
from flap.evaluation.layer_times import LayerTimes
from flap.importance import Metric
from flap.models import Given, PlacedModel, Source, adapt
from flap.recovery import Recovery
from flap.reporting import device_name
from flap.storage import Cache, Kind, as_json, digest
from flap.storage.workspace import workspace

DIVERGENCES: Kind[list[float]] = as_json("divergences")  # of plans, in nats a token
FITS_VERSION = 2  # raise it when compensation fits other weights or biases
RECOVERY_VERSION = 1  # raise it when the training gives other weights
DIVERGENCES_VERSION = 4  # raise it when the measurement or the fits change


@dataclass(frozen=True)
class Choices:
    """The choices of a config (metric, structure, compensation, evaluators) as objects."""

    metric: Metric
    structure: Structure
    compensation: Compensation
    evaluators: Sequence[Evaluator]
    propagate: str  # whose outputs each layer is calibrated on: "dense" or "pruned" layers
    recovery: Recovery | None = None  # training after compression

    @property
    def request(self) -> Efficiency:
        """The request that targets in time are about: that of eval.efficiency, or its defaults."""
        return next((one for one in self.evaluators if isinstance(one, Efficiency)), Efficiency())

    @property
    def in_sequence(self) -> bool:
        """Whether pruning is sequential: each layer is pruned before the next one is calibrated (Wanda-sp)."""
        return self.propagate == "pruned" and self.need_windows

    @property
    def need_windows(self) -> bool:
        """Whether a choice needs calibration windows."""
        needs = (self.structure.measures, self.metric.needs_statistics, self.compensation.needs_statistics)
        return any(needs)

    @property
    def need_covariance(self) -> bool:
        """Whether a choice needs statistics with covariances."""
        return self.metric.needs_covariance or self.compensation.needs_covariance

    @property
    def read_plain_statistics(self) -> bool:
        """Whether a choice needs statistics of the dense model without covariances."""
        choices = (self.metric, self.compensation)
        return not self.in_sequence and any(
            choice.needs_statistics and not choice.needs_covariance for choice in choices
        )


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

    @property
    def windows(self) -> Windows | None:
        """The calibration windows; None if nothing needs any."""
        return self.texts.get("calibration")

    @property
    def compress_layer(self) -> CompressLayer:
        """The function that changes a layer: slicing, or masking with `mask_only`."""
        return mask_layer if self.config.mask_only else slice_layer

    @property
    def replaces_checkpoint(self) -> bool:
        """Whether an existing checkpoint in the target may be replaced: on request, or if the run's folder holds it."""
        return self.config.checkpoint.overwrite or self.config.checkpoint.dir is None

    def open(self, more_to_come: bool, folder: Path | None) -> PlacedModel:
        """Return the model at its placement, with the units that the structure removes. See `Source.open`."""
        model = self.source.open(more_to_come, folder)
        model.adapter = adapt(model.model, self.choices.structure.experts)
        return model

    def with_own_text(self, model: PlacedModel) -> tuple["Job", dict[str, dict[str, Any]]]:
        """Return the job with the texts that the model writes itself, and what that took, for each use of such a text.

        Runs with the same model and options share the cached texts.
        """
        texts, facts = dict(self.texts), {}
        for use, windows in texts.items():
            if windows.to_write is not None:
                draft = Draft.of(windows)
                key = {**self.source.fingerprint, "device": model.device.type, **draft.key}
                written, state = self.cache.get(WRITTEN, key, partial(write, model, draft))
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
        key = self.source.fingerprint | {"device": device_name(model.device)}
        return LayerTimes(self.budget, self.choices.request, self.choices.structure, self.cache, key)

    def calibrate(self, model: PlacedModel, folder: Path | None) -> Calibration:
        """Return the calibration of the model. Runs with the same model and windows share the cached statistics."""
        return calibrate(
            model,
            self.windows.by_length if self.windows else [],
            self.config.calibration.batch_size,
            self.choices.read_plain_statistics,
            self.cache,
            self.source.fingerprint | self._windows_key,
            folder and folder / "calibrate",
        )

    @property
    def _windows_key(self) -> dict[str, Any]:
        """The part of a cache key that identifies windows and units. Statistics depend only on it and on the model."""
        units = {"units": "experts"} if self.choices.structure.experts else {}
        return units if self.windows is None else {"version": STATISTICS_VERSION, **self.windows.key, **units}

    def measure(self, calibration: Calibration, folder: Path | None) -> Measure:
        """Return the function that measures the divergence of plans; results are cached."""

        def measure(plans: Sequence[PruningPlan], num_tokens: int) -> list[float]:
            key: dict[str, Any] = {"plans": digest([plan.to_dict() for plan in plans]), "num_tokens": num_tokens}
            place = folder and folder / f"search-{digest(key)}"
            divergence = Divergence(calibration, self.choices.compensation, place)
            key |= self._divergence_key | {"device": calibration.model.device.type}
            return self.cache.get(DIVERGENCES, key, lambda: divergence(plans, num_tokens))[0]

        return measure

    @property
    def _divergence_key(self) -> dict[str, Any]:
        """All that divergences depend on besides plans, tokens and device."""
        options = asdict(self.config)
        return {
            **self.source.fingerprint,
            **self._windows_key,
            "search": DIVERGENCES_VERSION,
            "compensation": options["compensation"],
        }

    def recover(self, model: PlacedModel, more_to_come: bool, folder: Path | None) -> dict[str, Any]:
        """Train the compressed model in place to predict what the dense one predicts; return what the report says."""
        from flap.recovery.distillation import recover  # here, so that other runs do not wait for transformers' Trainer

        assert self.choices.recovery and folder and isinstance(self.source, Source)
        [tokens_NT], place = self.texts["recovery"].by_length, folder / "recover"
        return recover(self.choices.recovery, model, self.source, tokens_NT, place, self.config.seed, more_to_come)

    @property
    def _recovery_key(self) -> dict[str, Any]:
        """The part of a cache key that identifies the training; empty if there is none."""
        if self.choices.recovery is None:
            return {}
        windows = self.texts["recovery"].key
        return {"recover": {"version": RECOVERY_VERSION, **asdict(self.choices.recovery), **windows}}

    def compressed_key(self, plan: PruningPlan) -> dict[str, object]:
        """Return the part of a cache key that tells this compressed model from others of the same dense model."""
        options = asdict(self.config)
        return {
            "plan": digest(plan.to_dict()),
            "fits": FITS_VERSION,
            "calibration": self._windows_key,
            **{name: options[name] for name in ("compensation", "mask_only")},
            "propagate": self.config.calibration.propagate,
        }

    def pruned_key(self, plan: PruningPlan) -> dict[str, object]:
        """Return the same for the model that a run saves, which may be trained."""
        return self.compressed_key(plan) | self._recovery_key

    @contextmanager
    def workspace(self) -> Iterator[Path | None]:
        """Yield the folder that an interrupted run resumes from; None if this run stores nothing to resume from."""
        resumes = self.source.on_disk or (self.choices.structure.measures and self.cache.enabled)
        if not resumes and self.choices.recovery is None:
            yield None
            return
        options = asdict(self.config)
        deciding = ("metric", "structure", "compensation", "ratio", "target", "mask_only", "calibration")
        key = {**self.source.fingerprint, **self._windows_key, **self._recovery_key}
        key |= {name: options[name] for name in deciding}
        with workspace(self.cache.root, key, self.config.resume) as folder:
            yield folder

    @property
    def sources(self) -> dict[str, str]:
        """The origin of the model and of each text, for the report."""
        texts = {use: "; ".join(text.origin for text in windows.known) for use, windows in self.texts.items()}
        return {"model": self.source.origin, **texts, **{task.name: task.origin for task in self.suite.tasks}}

    @property
    def bos(self) -> dict[str, bool]:
        """Whether windows begin with the beginning-of-sequence token: those of calibration, and of each task."""
        tasks = {task.name: bool(task.identity["bos"]) for task in self.suite.tasks if "bos" in task.identity}
        return tasks if self.windows is None else {"calibration": self.windows.bos, **tasks}

    @property
    def inputs(self) -> dict[str, str]:
        """A digest of everything that is not in the config and changes the result: weights, texts, libraries, fits."""
        texts = {task.name: digest([task.origin, task.text_sha256]) for task in self.suite.tasks}
        calibration = {} if self.windows is None else {"calibration": digest(self.windows.key)}
        recovery = {use: digest(key) for use, key in self._recovery_key.items()}
        return {"model": digest(self.source.fingerprint), "fits": str(FITS_VERSION), **calibration, **recovery, **texts}

    @property
    def domains(self) -> dict[str, str]:
        """For each task, how its domain relates to those of the texts of calibration and recovery, for the report."""
        texts = [text for windows in self.texts.values() for text in windows.known]
        if not texts:
            return {}
        domains = {task.name: {task.domain(text) for text in texts} for task in self.suite.tasks}
        return {name: "calibration" if "calibration" in found else "other" for name, found in domains.items()}
