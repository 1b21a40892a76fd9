"""The method, from a config to a pruned checkpoint and a report (FLAP, An et al., AAAI 2024, arXiv 2312.11983)."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from flap.allocation import PruningPlan
from flap.checkpoint.card import write_card
from flap.checkpoint.convert import become_checkpointable
from flap.checkpoint.save import save
from flap.compression import prune_in_sequence
from flap.config import FlapConfig, in_time
from flap.data import SELF, save_text
from flap.data.random_state import seeded
from flap.export.gguf import export_gguf
from flap.jobs import Job
from flap.jobs.facts import begins_with_bos, domains, inputs, sources
from flap.jobs.prepare import prepare
from flap.jobs.texts import overlaps
from flap.models import Given, PlacedModel, Source, base_facts
from flap.reporting import Report, described, device_name, draw_layers, markdown, model_card
from flap.reporting.counts import count_dense, count_pruned
from flap.storage import write_text

log = logging.getLogger(__name__)


def run(
    config: FlapConfig, run_dir: Path | None, more_to_come: bool = False, source: Source | Given | None = None
) -> Report:
    """Prune a model, evaluate it before and after, and return the report. Checks come before the weights are loaded.

    more_to_come: this process may prune the same model again, so its dense weights may stay in memory.
    source: the model, if the caller has it already; `config.model` describes it. run_dir: the folder for report and
    plan; None: not written.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    report, job = Report.start(described(config)), prepare(config, run_dir, source)
    introduce(report, job)
    with seeded(config.seed), job.workspace() as folder:
        with report.timed("load"):
            model = job.open(more_to_come, folder)
        report.device, report.device_map = device_name(model.device), model.device_map
        # before the model is changed: a given one has no files to be read from again
        reopen = job.source.reopening(more_to_come) if job.suite.comparisons else job.source.open
        dense_key = job.keys.dense(model.device)
        with report.timed("evaluate"):
            dense = job.suite.dense(model, dense_key, job.cache)

        job, plan = prune(job, model, report, folder)

        compressed = None
        if job.choices.recovery is not None:
            with report.timed("evaluate"):
                compressed = job.suite.pruned(model, dense_key | job.keys.compressed(plan))
            with report.timed("recover"):  # what is left is trained to predict what the dense model predicts
                report.recovery = job.recover(model, plan, more_to_come, folder)
        if config.checkpoint.save:
            report.checkpoint = str(job.target)
            with report.timed("save"):
                files = job.source.tokenizer, job.target, plan, report.provenance, job.replaces_checkpoint
                model = save(model, *files, job.source.beside)
        if "gguf" in config.checkpoint.formats:
            log.info("wrote %s", export_gguf(job.target, config.checkpoint.gguf_type))

        pruned_key = dense_key | job.keys.pruned(plan)
        with report.timed("evaluate"):
            pruned = job.suite.pruned(model, pruned_key)
            report.compare(dense, pruned, job.suite.averages(pruned.numbers), compressed)
            report.note_peak()  # before a measurement resets the counters
            pair = job.suite.side_by_side(reopen, job.source.num_bytes, model, pruned_key)
            for which, numbers in zip(("dense", "pruned"), pair, strict=True):
                report.evaluation[which] |= numbers
    report.finish()
    if config.checkpoint.save:
        write_card(job.target, model_card(report, job.target, base_facts(config.model.path)))
    if run_dir is not None:
        write(report, plan, job, run_dir)
    return report


def prune(job: Job, model: PlacedModel, report: Report, folder: Path | None) -> tuple[Job, PruningPlan]:
    """Remove units from a model in place: calibrate, score, allocate, compress. Return the plan, and the job with it.

    The job that is returned has the text that the model wrote, and a budget from measured times where those are the
    target. folder: what a killed run goes on from; None: nothing is kept.
    """
    metric, structure, compensation = job.choices.metric, job.choices.structure, job.choices.compensation
    by_time = in_time(job.config.target)
    if by_time:
        with report.timed("time layers"):  # how much faster a request is with narrower layers
            job = job.with_layer_times(model)
    count_dense(report, model.adapter, job.budget)
    passes = model.passes
    with report.timed("calibrate") if job.windows else nullcontext():
        # statistics of the inputs of each output projection, on texts of which the model may write one itself
        job, report.own_text = job.with_own_text(model, folder)
        if report.own_text:
            introduce(report, job)  # with what the model has written
        calibration = job.calibrate(model, folder)
    report.sources, report.statistics_cache = sources(job), calibration.cache_state
    if job.choices.in_sequence:  # Wanda-sp: each layer is calibrated on the outputs of pruned layers
        with report.timed("prune"):
            plan, fits = prune_in_sequence(
                calibration, metric, structure, compensation, job.budget, job.compress_layer, folder
            )
    else:
        with report.timed("score"):  # how much each unit matters; a search also tries each block with fewer of them
            scores = job.score(calibration, folder)
        with report.timed("allocate"):  # which units stay within the budget
            allocate = partial(structure.allocate, scores, measure=job.measure(calibration, folder))
            job, plan = job.settle(model, allocate) if by_time else (job, allocate(job.budget))
        with report.timed("compress"):  # the other units are removed, with compensation
            fits = job.compress(calibration, plan, folder)
    plan = replace(plan, whole_experts=job.budget.whole_experts)
    report.search_nats, report.weight_passes = list(plan.nats), model.passes - passes
    report.repairs = {block: fit._asdict() for block, fit in fits.items()}
    if job.budget.kept(plan) < job.budget.total:
        report.loads_with = become_checkpointable(model)
    count_pruned(report, model.adapter, plan, job.budget, masked=job.config.mask_only)
    if by_time:
        report.note_times(job.choices.request.timed(model.model))
    return job, plan


def introduce(report: Report, job: Job) -> None:
    """Set what is known of a run from its texts: domains, inputs, and warnings, of which new ones are logged."""
    report.domains, report.bos, report.inputs = domains(job), begins_with_bos(job), inputs(job)
    for warning in overlaps(job.texts, job.suite.tasks):
        if warning not in report.warnings:
            report.warnings.append(warning)
            log.warning(warning)


def write(report: Report, plan: PruningPlan, job: Job, run_dir: Path) -> None:
    """Write report.json, report.md, plan.json, the picture and the model's own texts into the run's folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for use in report.own_text:
        [text] = (text for text in job.texts[use].known if text.name == SELF)
        save_text(text, run_dir / f"{SELF}_{use}.jsonl")
    plan.save(run_dir / "plan.json")
    draw_layers(report, run_dir / "layers.png")
    write_text(run_dir / "report.md", markdown(report))
    report.save(run_dir / "report.json")
