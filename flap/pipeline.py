"""The stages as one readable paragraph: load, calibrate, score, allocate, compress, save, evaluate, report.

Legend: N windows · T tokens a window.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.allocation import Budget, LayerPlan, PruningPlan, Structure, UniformLayers, keep_quotas, price
from flap.calibration import LayerStatistics, Text, calibration_windows, collect, collect_layerwise, read_text
from flap.checkpoint.convert import become_checkpointable
from flap.checkpoint.save import check_target, save
from flap.compression import Compensation, CompressLayer, compress, mask_layer, prune_layer
from flap.config import FlapConfig, build
from flap.evaluation import Evaluator, Task
from flap.files import cache_root
from flap.importance import Metric, score_layers
from flap.models import ModelAdapter, adapt, find_model
from flap.reporting import Report, draw_layers, markdown

log = logging.getLogger(__name__)


def run(config: FlapConfig, run_dir: Path) -> Report:
    """One run, from a config to a report on disk. All that needs no weights is checked before they are loaded.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    report = Report(asdict(config))
    stages = build_stages(config)
    target = Path(config.checkpoint.dir or run_dir / "checkpoint")
    if config.checkpoint.save:
        check_target(target, config.checkpoint.overwrite)
    source = find_model(config.model, cache_root(config.cache_dir), config.trust_remote_code)
    tasks = [task for one in stages.evaluators for task in one.tasks(source.tokenizer, source.max_length)]
    calibration = read_calibration(config, stages, source.tokenizer, source.max_length)
    budget = check_budget(adapt(source.skeleton()), stages, config)
    report.sources = {"model": source.origin} | note_texts(report, calibration, tasks)

    with report.timed("load"):
        model = source.load()
    report.device = str(model.device)
    with report.timed("evaluate"):
        report.evaluation["dense"] = evaluate(model, tasks)
    plan = prune_model(Job(adapt(model), budget, stages, calibration, config, report))
    if config.checkpoint.save:
        with report.timed("save"):
            provenance = {"config": report.config, "versions": report.versions, "git": report.git}
            save(model, source.tokenizer, target, plan, provenance, config.checkpoint.overwrite)
            report.checkpoint = str(target)
    with report.timed("evaluate"):
        report.evaluation["pruned"] = evaluate(model, tasks)
    report.finish()
    write(report, plan, run_dir)
    return report


@dataclass(frozen=True)
class Stages:
    """The choices of a config as objects."""

    metric: Metric
    structure: Structure
    compensation: Compensation
    evaluators: list[Evaluator]

    @property
    def need_statistics(self) -> bool:
        return self.metric.needs_statistics or self.compensation.needs_statistics


@dataclass(frozen=True)
class Calibration:
    """The windows that the statistics are taken from, and their text."""

    tokens_NT: Tensor
    text: Text


def build_stages(config: FlapConfig) -> Stages:
    """Raises: ValueError: an option of a choice is out of range, or two choices do not go together."""
    torch.manual_seed(config.seed)
    stages = Stages(
        build("metric", config.metric),
        build("structure", config.structure),
        build("compensation", config.compensation),
        [build(f"eval.{name}", node) for name, node in (config.eval or {}).items()],
    )
    if config.calibration.propagate == "pruned" and not isinstance(stages.structure, UniformLayers):
        raise ValueError(
            "calibration.propagate=pruned: expected structure UL-UM or UL-MM, because an adaptive plan is known only "
            "after every layer has its statistics"
        )
    return stages


def read_calibration(
    config: FlapConfig, stages: Stages, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Calibration | None:
    """The calibration windows, or None where neither metric nor compensation needs any."""
    if not stages.need_statistics:
        return None
    options = config.calibration
    if max_length is not None and options.seq_len > max_length:
        raise ValueError(f"calibration.seq_len={options.seq_len}: the model's context ends at {max_length} tokens")
    text = read_text(options.dataset, "calibration", "calibration.dataset")
    tokens_NT = calibration_windows(text, tokenizer, options.num_samples, options.seq_len, config.seed)
    return Calibration(tokens_NT, text)


def check_budget(adapter: ModelAdapter, stages: Stages, config: FlapConfig) -> Budget:
    """The budget, counted from the tensors. Raises: ValueError: ratio or structure do not fit this model."""
    budget = price(adapter, config.ratio)
    stages.structure.check(budget)
    return budget


@dataclass(frozen=True)
class Job:
    """What pruning one loaded model takes; `report` is filled on the way."""

    adapter: ModelAdapter
    budget: Budget
    stages: Stages
    calibration: Calibration | None
    config: FlapConfig
    report: Report

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
    statistics: Sequence[LayerStatistics | None] = [None for _ in layers]
    if job.calibration is not None:
        with job.report.timed("calibrate"):
            statistics = collect(job.adapter, job.calibration.tokens_NT, job.config.calibration.batch_size)
    with job.report.timed("score"):
        scores = score_layers(job.stages.metric, job.adapter, layers, statistics)
    with job.report.timed("allocate"):
        plan = job.stages.structure.allocate(scores, job.budget)
    with job.report.timed("compress"):
        compress(job.adapter, plan, job.stages.compensation, statistics, job.compress_layer)
    return plan


def _prune_layer_by_layer(job: Job) -> PruningPlan:
    """Each layer is scored and compressed before the next one is calibrated on what it puts out (Wanda-sp)."""
    assert job.calibration is not None and isinstance(job.stages.structure, UniformLayers)
    quotas = job.stages.structure.quotas(job.budget)
    plans: list[LayerPlan] = []
    with job.report.timed("calibrate"):  # scoring and compressing happen in between
        for i, known in collect_layerwise(job.adapter, job.calibration.tokens_NT, job.config.calibration.batch_size):
            scores = score_layers(job.stages.metric, job.adapter, range(i, i + 1), [known])
            plans += keep_quotas(scores, quotas[i : i + 1]).layers
            job.compress_layer(job.adapter, i, plans[i], job.stages.compensation, known)
    return PruningPlan(tuple(plans))


def note_texts(report: Report, calibration: Calibration | None, tasks: list[Task]) -> dict[str, str]:
    """Warn, on the console and in the report, where a model is evaluated on the text it was calibrated on."""
    if calibration is None:
        return {}
    for task in tasks:
        if task.text_sha256 == calibration.text.sha256:
            report.warnings.append(f"{task.name} is measured on the calibration text itself")
            log.warning(report.warnings[-1])
    return {"calibration": calibration.text.origin}


def evaluate(model: PreTrainedModel, tasks: list[Task]) -> dict[str, float]:
    """Run every task and merge its numbers."""
    return {name: value for task in tasks for name, value in task.run(model).items()}


def write(report: Report, plan: PruningPlan, run_dir: Path) -> None:
    """report.json, report.md, plan.json and the picture, into the run's folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    plan.save(run_dir / "plan.json")
    draw_layers(report, run_dir / "layers.png")
    (run_dir / "report.md").write_text(markdown(report))
    report.save(run_dir / "report.json")
