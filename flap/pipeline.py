"""The method, from a config to a pruned checkpoint and a report (FLAP, An et al., AAAI 2024, arXiv 2312.11983)."""

import logging
from pathlib import Path

from flap.allocation import PruningPlan
from flap.checkpoint.card import write_card
from flap.config import FlapConfig, in_time, one_line
from flap.data import SELF
from flap.models import Given, PlacedModel, Source, base_facts
from flap.results import Report, draw_layers, markdown, model_card
from flap.runs import Run
from flap.runs.method import allocate, calibrate, compress, prune_layers, score, time_layers
from flap.runs.prepare import prepare
from flap.runs.stages import compare, load, measure_compressed, measure_dense, recover, save
from flap.storage import write_text

log = logging.getLogger(__name__)


def run(
    config: FlapConfig, run_dir: Path | None, keep_dense: bool = False, source: Source | Given | None = None
) -> Report:
    """Prune a model, evaluate it before and after, and return the report. Checks come before the weights are loaded.

    keep_dense: this process may prune the same model again, so its dense weights may stay in memory.
    source: the model, if the caller has it already; `config.model` describes it. run_dir: the folder for report and
    plan; None: not written.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    run, compressed = prepare(config, run_dir, source, keep_dense=keep_dense), None
    with run.begun():
        model = run.stage(load)
        dense = run.stage(measure_dense, model)
        if in_time(config.target):
            run.stage(time_layers, model)  # how much faster a request is with narrower layers
        plan = prune_in_sequence(run, model) if run.choices.in_sequence else prune(run, model)
        if run.choices.recovery is not None:
            compressed = run.stage(measure_compressed, model, plan)
            run.stage(recover, model, plan)
        if config.checkpoint.save:
            model = run.stage(save, model, plan)
        run.stage(compare, model, plan, dense, compressed)
        run.report.finish()
        if run_dir is not None:
            write(run, plan, run_dir)
        if config.checkpoint.save:
            write_card(run.target, model_card(run.report, run.target, base_facts(config.model.path)))
    return run.report


def prune(run: Run, model: PlacedModel) -> PruningPlan:
    """Remove units from a model in place, and return the plan that says which ones stay (FLAP, section 3)."""
    calibration = calibrate(run, model)  # statistics of the inputs of each output projection
    scores = run.stage(score, calibration)  # how much each unit matters
    plan = run.stage(allocate, calibration, scores)  # which units stay within the budget
    run.stage(compress, calibration, plan)  # the others are removed, with compensation
    return plan


def prune_in_sequence(run: Run, model: PlacedModel) -> PruningPlan:
    """As `prune`, but each layer is calibrated on the outputs of the layers that are pruned already (Wanda-sp)."""
    return run.stage(prune_layers, calibrate(run, model))


def write(run: Run, plan: PruningPlan, run_dir: Path) -> None:
    """Write report.json, report.md, plan.json, the picture and the model's own texts into the run's folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for use in run.report.own_text:
        [text] = (text for text in run.texts[use].known if text.name == SELF)
        write_text(run_dir / f"{SELF}_{use}.jsonl", text.jsonl)
    plan.save(run_dir / "plan.json")
    run.report.save(run_dir / "report.json")
    write_text(run_dir / "report.md", markdown(run.report))
    picture = run_dir / "layers.png"
    try:
        draw_layers(run.report, picture)
    except Exception as error:  # no picture is worth the report of a run
        picture.unlink(missing_ok=True)
        log.warning("%s: cannot be drawn (%s)", picture, one_line(error))
