"""Prune one loaded model: calibrate, score, allocate, compress."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

import torch

from flap.allocation import Budget, LayerPlan, PruningPlan, Search, UniformLayers, keep_quotas
from flap.cache import Cache, Kind, as_json, digest
from flap.calibration import (
    HELD_OUT,
    LayerStatistics,
    collect,
    collect_covariances,
    collect_layerwise,
    statistics_on_disk,
)
from flap.checkpoint.convert import become_checkpointable
from flap.compression import CompressLayer, Divergence, compress, mask_layer, propagate, prune_layer
from flap.config import FlapConfig
from flap.importance import Scores, score_layers
from flap.models import ModelAdapter
from flap.progress import progress
from flap.reporting import Report
from flap.stages import Calibration, Stages

# What one layer's trials do to the predictions, in nats a token, in the order of the trials.
DIVERGENCES: Kind[list[float]] = as_json("divergences")


@dataclass(frozen=True)
class Job:
    """What pruning one loaded model takes; `report` is filled on the way."""

    adapter: ModelAdapter
    budget: Budget
    stages: Stages
    calibration: Calibration | None
    config: FlapConfig
    report: Report
    cache: Cache
    model_key: Mapping[str, object] = field(default_factory=dict)

    def statistics(self, device: torch.device, collect: Callable[[], list[LayerStatistics]]) -> list[LayerStatistics]:
        """Statistics of the dense model: collected once for all that share model and calibration, then read."""
        assert self.calibration is not None
        statistics, self.report.statistics_cache = self.cache.get(
            statistics_on_disk(device), {**self.model_key, **self.calibration.key}, collect
        )
        return statistics

    @property
    def compress_layer(self) -> CompressLayer:
        return mask_layer if self.config.mask_only else prune_layer


def prune_model(job: Job) -> PruningPlan:
    """Calibrate, score, allocate and compress: the model is changed in place, the report says what stayed."""
    job.report.count_before(job.adapter, job.budget)
    if job.calibration is not None and job.stages.prune_on_the_way:
        tokens_NT, batch_size = job.calibration.tokens_NT, job.config.calibration.batch_size
        plan = prune_layer_by_layer(
            job, collect_layerwise(job.adapter, tokens_NT, batch_size, job.stages.need_covariance)
        )
    else:
        plan = _prune_at_once(job)
    if job.budget.kept(plan) < job.budget.total:
        job.report.loads_with = become_checkpointable(job.adapter).loads_with
    job.report.count_after(job.adapter, plan, job.budget, masked=job.config.mask_only)
    return plan


def _prune_at_once(job: Job) -> PruningPlan:
    """Statistics of the dense model, then scores, then one plan for all layers."""
    layers = range(len(job.adapter.layers))
    statistics: Iterable[LayerStatistics | None] = [None for _ in layers]
    if job.calibration is not None:
        with job.report.timed("calibrate"):
            statistics = _collected(job)
    with job.report.timed("score"):
        scores = score_layers(job.stages.metric, job.adapter, layers, statistics)
    with job.report.timed("allocate"):
        if isinstance(job.stages.structure, Search):
            scores = _searched(job, job.stages.structure, scores, statistics)
        plan = job.stages.structure.allocate(scores, job.budget)
    with job.report.timed("compress"):
        _compressed(job, plan, statistics)
    return plan


def _compressed(job: Job, plan: PruningPlan, statistics: Iterable[LayerStatistics | None]) -> None:
    """Apply the plan; where the config says so, each layer corrects the error of those before it."""
    known = (job.adapter, plan, job.stages.compensation, statistics, job.compress_layer)
    if not job.stages.correct_behind_pruned:
        job.report.note_repairs(compress(*known))
        return
    assert job.calibration is not None
    repairs, corrections = propagate(*known, job.calibration.tokens_NT, job.config.calibration.batch_size)
    job.report.note_repairs(repairs)
    job.report.note_corrections(corrections)


def _searched(job: Job, structure: Search, scores: Scores, statistics: Iterable[LayerStatistics | None]) -> Scores:
    """The scores in nats per parameter. What is measured of a layer holds for any ratio, and is kept."""
    assert job.calibration is not None
    compensation, options = job.stages.compensation, asdict(job.config)
    key = {**job.model_key, "device": job.adapter.decoder.device.type, **job.calibration.key}
    key |= {name: options[name] for name in ("metric", "structure", "compensation")}
    divergence = Divergence(job.adapter, job.calibration.tokens_NT[::HELD_OUT][: structure.windows])
    known, measured = iter(statistics), []
    for i in progress(range(len(job.adapter.layers)), "search"):
        layer, trials = next(known), structure.trials(scores, i)
        measure = partial(divergence.of_each, i, trials, compensation, layer)
        measured.append(job.cache.get(DIVERGENCES, {**key, "layer": i}, measure)[0])
        del layer, measure  # with covariances, before the next ones are read
    return structure.in_nats(scores, measured, job.budget)


def _collected(job: Job) -> Iterable[LayerStatistics]:
    """Statistics of all layers. Those with covariances are large: for this run alone, on disk until they are used."""
    assert job.calibration is not None
    tokens_NT, batch_size = job.calibration.tokens_NT, job.config.calibration.batch_size
    if job.stages.need_covariance:
        return collect_covariances(job.adapter, tokens_NT, batch_size, job.cache.root)
    return job.statistics(job.adapter.decoder.device, lambda: collect(job.adapter, tokens_NT, batch_size))


def prune_layer_by_layer(job: Job, calibrated: Iterable[tuple[int, LayerStatistics]]) -> PruningPlan:
    """Each layer is scored and compressed before the next one is calibrated on what it puts out (Wanda-sp)."""
    assert isinstance(job.stages.structure, UniformLayers)
    quotas = job.stages.structure.quotas(job.budget)
    plans: list[LayerPlan] = []
    with job.report.timed("calibrate"):  # scoring and compressing happen in between
        for i, known in calibrated:
            scores = score_layers(job.stages.metric, job.adapter, range(i, i + 1), [known])
            plans += keep_quotas(scores, quotas[i : i + 1]).layers
            job.report.note_repairs(job.compress_layer(job.adapter, i, plans[i], job.stages.compensation, known))
            del known  # with its covariances, before the next ones are collected
    return PruningPlan(tuple(plans))


def pruned_identity(config: FlapConfig, calibration: Calibration | None, plan: PruningPlan) -> dict[str, object]:
    """Which pruned model of a dense one this is: the units that stay, and what stands in for the others."""
    options = asdict(config)
    return {
        "plan": digest(plan.to_dict()),
        "calibration": calibration and calibration.key,
        **{name: options[name] for name in ("compensation", "mask_only")},
        "propagate": config.calibration.propagate,
    }
