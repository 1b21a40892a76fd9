"""The job of a run: all that it needs besides weights, as choices, windows, budget, tasks and cache.

Legend: N windows · T tokens a window.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flap.allocation import Budget, Measure, PruningPlan, Structure
from flap.calibration import STATISTICS_VERSION, Calibration
from flap.calibration.calibrate import calibrate
from flap.compression import Compensation, CompressLayer, Divergence, mask_layer, slice_layer
from flap.config import FlapConfig
from flap.data import Text, tokens_sha256
from flap.evaluation import Evaluator, Suite
from flap.importance import Metric
from flap.models import Given, PlacedModel, Source
from flap.storage import Cache, Kind, as_json, digest
from flap.storage.workspace import workspace

DIVERGENCES: Kind[list[float]] = as_json("divergences")  # of plans, in nats a token
FITS_VERSION = 2  # raise it when compensation fits other weights or biases
DIVERGENCES_VERSION = 4  # raise it when the measurement or the fits change


@dataclass(frozen=True)
class Choices:
    """The choices of a config (metric, structure, compensation, evaluators) as objects."""

    metric: Metric
    structure: Structure
    compensation: Compensation
    evaluators: Sequence[Evaluator]
    propagate: str  # whose outputs each layer is calibrated on: "dense" or "pruned" layers

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
class Windows:
    """The calibration windows, with their text and seed."""

    tokens_NT: Tensor
    text: Text
    seed: int
    bos: bool = False  # each window begins with the beginning-of-sequence token

    @property
    def key(self) -> dict[str, object]:
        """The part of a cache key that identifies the windows. Statistics depend only on it and on the model."""
        num_samples, seq_len = self.tokens_NT.shape
        return {
            "version": STATISTICS_VERSION,
            "dataset": self.text.name,
            "num_samples": num_samples,
            "seq_len": seq_len,
            "seed": self.seed,
            "bos": self.bos,
            "tokens": tokens_sha256(self.tokens_NT),
        }


@dataclass(frozen=True)
class Job:
    """Everything that a run needs besides weights; `prepare` makes it from a config."""

    config: FlapConfig
    choices: Choices
    source: Source | Given
    windows: Windows | None
    budget: Budget
    suite: Suite
    cache: Cache
    target: Path

    @property
    def compress_layer(self) -> CompressLayer:
        """The function that changes a layer: slicing, or masking with `mask_only`."""
        return mask_layer if self.config.mask_only else slice_layer

    @property
    def replaces_checkpoint(self) -> bool:
        """Whether an existing checkpoint in the target may be replaced: on request, or if the run's folder holds it."""
        return self.config.checkpoint.overwrite or self.config.checkpoint.dir is None

    def calibrate(self, model: PlacedModel, folder: Path | None) -> Calibration:
        """Return the calibration of the model. Runs with the same model and windows share the cached statistics."""
        tokens_NT, key = (None, {}) if self.windows is None else (self.windows.tokens_NT, self.windows.key)
        return calibrate(
            model,
            tokens_NT,
            self.config.calibration.batch_size,
            self.choices.read_plain_statistics,
            self.cache,
            self.source.fingerprint | key,
            folder and folder / "calibrate",
        )

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
        assert self.windows is not None
        options = asdict(self.config)
        return {
            **self.source.fingerprint,
            **self.windows.key,
            "search": DIVERGENCES_VERSION,
            "compensation": options["compensation"],
        }

    def pruned_key(self, plan: PruningPlan) -> dict[str, object]:
        """Return the part of a cache key that tells this pruned model from others of the same dense model."""
        options = asdict(self.config)
        return {
            "plan": digest(plan.to_dict()),
            "fits": FITS_VERSION,
            "calibration": self.windows and self.windows.key,
            **{name: options[name] for name in ("compensation", "mask_only")},
            "propagate": self.config.calibration.propagate,
        }

    @contextmanager
    def workspace(self) -> Iterator[Path | None]:
        """Yield the folder that an interrupted run resumes from; None if this run stores nothing to resume from."""
        if not self.source.on_disk and not (self.choices.structure.measures and self.cache.enabled):
            yield None
            return
        options = asdict(self.config)
        deciding = ("metric", "structure", "compensation", "ratio", "mask_only", "calibration")
        key = {**self.source.fingerprint, **(self.windows.key if self.windows else {})}
        key |= {name: options[name] for name in deciding}
        with workspace(self.cache.root, key, self.config.resume) as folder:
            yield folder

    @property
    def sources(self) -> dict[str, str]:
        """The origin of the model and of each text, for the report."""
        calibration = {} if self.windows is None else {"calibration": self.windows.text.origin}
        return {"model": self.source.origin, **calibration, **{task.name: task.origin for task in self.suite.tasks}}

    @property
    def bos(self) -> dict[str, bool]:
        """Whether windows begin with the beginning-of-sequence token: those of calibration, and of each task."""
        tasks = {task.name: bool(task.identity["bos"]) for task in self.suite.tasks if "bos" in task.identity}
        return tasks if self.windows is None else {"calibration": self.windows.bos, **tasks}

    @property
    def inputs(self) -> dict[str, str]:
        """A digest of everything that is not in the config and changes the result: weights, texts, libraries, fits."""
        texts = {task.name: digest([task.origin, task.text_sha256]) for task in self.suite.tasks}
        calibration = {} if self.windows is None else {"calibration": self.windows.text.sha256[:20]}
        return {"model": digest(self.source.fingerprint), "fits": str(FITS_VERSION), **calibration, **texts}

    @property
    def domains(self) -> dict[str, str]:
        """For each task, how its domain relates to that of the calibration text, for the report."""
        windows = self.windows
        return {} if windows is None else {task.name: task.domain(windows.text) for task in self.suite.tasks}
