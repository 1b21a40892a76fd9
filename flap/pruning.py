"""Prune one loaded model: calibrate, score, allocate, compress."""

from collections.abc import Iterable
from dataclasses import asdict

from flap.allocation import LayerPlan, PruningPlan, Search, UniformLayers, keep_quotas
from flap.cache import digest
from flap.calibration import LayerStatistics, collect, collect_covariances, collect_layerwise
from flap.checkpoint.convert import become_checkpointable
from flap.compression import compress, propagate
from flap.config import FlapConfig
from flap.importance import score_layers
from flap.job import Job
from flap.searching import search
from flap.stages import Calibration


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
        structure = job.stages.structure
        if isinstance(structure, Search):
            plan = search(job, structure, scores, statistics)
        else:
            plan = structure.allocate(scores, job.budget)
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
