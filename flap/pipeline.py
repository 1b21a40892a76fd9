"""One run as one readable paragraph: load, calibrate, score, allocate, compress, save, evaluate, report."""

import logging
from dataclasses import asdict
from pathlib import Path

from flap.allocation import PruningPlan
from flap.cache import Cache
from flap.checkpoint.gguf import check_export, export_gguf, source_gguf
from flap.checkpoint.save import check_target, save
from flap.config import FlapConfig
from flap.evaluation import Task, prepare
from flap.files import cache_root, write_text
from flap.job import Job
from flap.models import AnyModel, Source, StreamedModel, adapt, adapter_of, find_model
from flap.pruning import prune_model, pruned_identity
from flap.reporting import Report, draw_layers, markdown
from flap.stages import Calibration, build_stages, check_budget, read_calibration
from flap.streaming import prune_streamed

log = logging.getLogger(__name__)


def run(config: FlapConfig, run_dir: Path, more_to_come: bool = False) -> Report:
    """One run, from a config to a report on disk. All that needs no weights is checked before they are loaded.

    more_to_come: this process may prune the same model again, so it may stay in memory.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    report = Report.start(asdict(config))
    stages = build_stages(config)
    target, replace = checkpoint_target(config, run_dir)
    source = find_model(config.model, cache_root(config.cache_dir), config.trust_remote_code)
    if "gguf" in config.checkpoint.formats:
        alike = stages.keep_layers_alike or config.ratio == 0
        check_export(source.config, source.tokenizer, source_gguf(config.model.path), alike)
    suite = prepare(stages.evaluators, source.tokenizer, source.max_length, results_file(config, run_dir))
    calibration = read_calibration(config, stages, source.tokenizer, source.max_length)
    budget = check_budget(adapt(source.skeleton()), stages, config)
    report.sources = {"model": source.origin} | note_texts(report, calibration, suite.tasks)
    cache = Cache(cache_root(config.cache_dir), config.use_cache, config.cache_wait_seconds)

    with report.timed("load"):
        model = source.open(more_to_come)
    report.note_devices(model)
    dense_key = {"model": source.fingerprint, "device": model.device.type}
    with report.timed("evaluate"):
        report.evaluation["dense"] = suite.dense(model, dense_key, cache)
    job = Job(adapter_of(model), budget, stages, calibration, config, report, cache, source.fingerprint)
    plan, model = prune(job, source, model, target, replace)
    if "gguf" in config.checkpoint.formats:
        log.info("wrote %s", export_gguf(target, config.checkpoint.gguf_type))
    pruned_key = dense_key | pruned_identity(config, calibration, plan)
    with report.timed("evaluate"):
        report.evaluation["pruned"] = suite.pruned(model, pruned_key)
        report.note_peak()  # before a measurement resets the counters
        pair = suite.side_by_side(lambda: source.open(more_to_come), model, pruned_key)
        for which, numbers in zip(("dense", "pruned"), pair, strict=True):
            report.evaluation[which] |= numbers
    report.finish()
    write(report, plan, run_dir)
    return report


def prune(job: Job, source: Source, model: AnyModel, target: Path, replace: bool) -> tuple[PruningPlan, AnyModel]:
    """Calibrate, score, allocate, compress and save: in memory, or from disk to disk. What is returned is pruned."""
    job.report.checkpoint = str(target) if job.config.checkpoint.save else None
    if isinstance(model, StreamedModel):
        return prune_streamed(job, source, model, target, replace)
    plan = prune_model(job)
    if job.config.checkpoint.save:
        with job.report.timed("save"):
            save(model, source.tokenizer, target, plan, job.report.provenance, replace)
    return plan, model


def checkpoint_target(config: FlapConfig, run_dir: Path) -> tuple[Path, bool]:
    """Where the checkpoint goes, and whether it may replace one: that of an earlier start of the same run may go.

    Raises:
        ValueError: the target is taken, or cannot be written.
    """
    target = Path(config.checkpoint.dir or run_dir / "checkpoint")
    replace = config.checkpoint.overwrite or config.checkpoint.dir is None
    if config.checkpoint.save:
        check_target(target, replace)
    return target, replace


def results_file(config: FlapConfig, run_dir: Path) -> Path:
    """Where numbers are kept after every task; without `resume` those of an earlier start count for nothing."""
    path = run_dir / "evaluation.json"
    if not config.resume:
        path.unlink(missing_ok=True)
    return path


def note_texts(report: Report, calibration: Calibration | None, tasks: list[Task]) -> dict[str, str]:
    """Where texts and tasks come from; notes domains, warns where a model is evaluated on its calibration text."""
    origins = {task.name: task.origin for task in tasks}
    if calibration is None:
        return origins
    report.domains = {task.name: task.domain(calibration.text) for task in tasks}
    for task in tasks:
        if task.text_sha256 == calibration.text.sha256:
            report.warnings.append(f"{task.name} is measured on the calibration text itself")
        elif calibration.text.name in task.shares_text_with:
            report.warnings.append(f"{task.name} is measured on documents that {calibration.text.name} is made of, too")
    for warning in report.warnings:
        log.warning(warning)
    return {"calibration": calibration.text.origin, **origins}


def write(report: Report, plan: PruningPlan, run_dir: Path) -> None:
    """report.json, report.md, plan.json and the picture, into the run's folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    plan.save(run_dir / "plan.json")
    draw_layers(report, run_dir / "layers.png")
    write_text(run_dir / "report.md", markdown(report))
    report.save(run_dir / "report.json")
