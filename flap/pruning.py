"""Prune one loaded model: calibrate, score, allocate, compress."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flap.allocation import Budget, LayerPlan, PruningPlan, UniformLayers, keep_quotas
from flap.cache import Cache
from flap.calibration import LayerStatistics, collect, collect_covariances, collect_layerwise, statistics_on_disk
from flap.checkpoint.convert import become_checkpointable
from flap.compression import CompressLayer, compress, mask_layer, prune_layer
from flap.config import FlapConfig
from flap.importance import score_layers
from flap.models import ModelAdapter
from flap.reporting import Report
from flap.stages import Calibration, Stages


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

    def statistics(self) -> Iterable[LayerStatistics]:
        """Statistics of the dense model: collected once for all that share model and calibration, then read.

        Those with covariances are large: they are collected for this run alone and wait on disk.
        """
        assert self.calibration is not None
        tokens_NT, batch_size = self.calibration.tokens_NT, self.config.calibration.batch_size
        if self.stages.need_covariance:
            return collect_covariances(self.adapter, tokens_NT, batch_size, self.cache.root)
        statistics, self.report.statistics_cache = self.cache.get(
            statistics_on_disk(self.adapter.decoder.device),
            {**self.model_key, **self.calibration.key},
            lambda: collect(self.adapter, tokens_NT, batch_size),
        )
        return statistics

    @property
    def compress_layer(self) -> CompressLayer:
        return mask_layer if self.config.mask_only else prune_layer


def prune_model(job: Job) -> PruningPlan:
    """Calibrate, score, allocate and compress: the model is changed in place, the report says what stayed."""
    job.report.count_before(job.adapter, job.budget)
    layer_by_layer = job.calibration is not None and job.config.calibration.propagate == "pruned"
    prune = _prune_layer_by_layer if layer_by_layer else _prune_at_once
    plan = prune(job)
    if job.budget.kept(plan) < job.budget.total:
        become_checkpointable(job.adapter)
    job.report.count_after(job.adapter, plan, job.budget, masked=job.config.mask_only)
    return plan


def _prune_at_once(job: Job) -> PruningPlan:
    """Statistics of the dense model, then scores, then one plan for all layers."""
    layers = range(len(job.adapter.layers))
    statistics: Iterable[LayerStatistics | None] = [None for _ in layers]
    if job.calibration is not None:
        with job.report.timed("calibrate"):
            statistics = job.statistics()
    with job.report.timed("score"):
        scores = score_layers(job.stages.metric, job.adapter, layers, statistics)
    with job.report.timed("allocate"):
        plan = job.stages.structure.allocate(scores, job.budget)
    with job.report.timed("compress"):
        repairs = compress(job.adapter, plan, job.stages.compensation, statistics, job.compress_layer)
    job.report.note_repairs(repairs)
    return plan


def _prune_layer_by_layer(job: Job) -> PruningPlan:
    """Each layer is scored and compressed before the next one is calibrated on what it puts out (Wanda-sp)."""
    assert job.calibration is not None and isinstance(job.stages.structure, UniformLayers)
    quotas = job.stages.structure.quotas(job.budget)
    plans: list[LayerPlan] = []
    with job.report.timed("calibrate"):  # scoring and compressing happen in between
        tokens_NT, batch_size = job.calibration.tokens_NT, job.config.calibration.batch_size
        for i, known in collect_layerwise(job.adapter, tokens_NT, batch_size, job.stages.need_covariance):
            scores = score_layers(job.stages.metric, job.adapter, range(i, i + 1), [known])
            plans += keep_quotas(scores, quotas[i : i + 1]).layers
            job.report.note_repairs(job.compress_layer(job.adapter, i, plans[i], job.stages.compensation, known))
            del known  # with its covariances, before the next ones are collected
    return PruningPlan(tuple(plans))
