"""The method, from a config to a pruned checkpoint and a report (FLAP, An et al., AAAI 2024, arXiv 2312.11983)."""

from functools import partial
from pathlib import Path

from flap.allocation import PruningPlan
from flap.calibration import LayerStatistics
from flap.config import FlapConfig
from flap.models import ModelSource, PlacedModel
from flap.results import Report
from flap.runs.all_ranks import prepared_alike
from flap.runs.method import allocate, compress, observe, prune_layers, score
from flap.runs.method import write as write_own_text
from flap.runs.prepare import prepare
from flap.runs.report_files import write_files
from flap.runs.run import Run
from flap.runs.stages import compare, load, measure_compressed, measure_dense, recover, save
from flap.runs.trimming import rank_tokens, trim
from flap.storage import ranks


def run(
    config: FlapConfig, run_dir: Path | None, keep_dense: bool = False, source: ModelSource | None = None
) -> Report:
    """Prune a model, evaluate it before and after, and return the report. Checks come before the weights are loaded.

    keep_dense: this process may prune the same model again, so its dense weights may stay in memory.
    source: the model, if the caller has it already; `config.model` describes it. run_dir: the folder for report and
    plan; None: not written.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    run = prepared_alike(partial(prepare, config, run_dir, source, True, keep_dense))
    with run.begun():
        plan = stages(run)
        run.report.finish()
        ranks.on_first(partial(write_files, run, plan, run_dir))
    return run.report


def stages(run: Run) -> PruningPlan:
    """Go through all stages in their order."""
    model, compressed = run.stage(load), None
    dense = run.stage(measure_dense, model)
    plan = prune_in_sequence(run, model) if run.choices.in_sequence else prune(run, model)
    if run.choices.vocabulary is not None:
        run.stage(trim, model)  # from here on, texts have other tokens
    if run.choices.recovery is not None:
        compressed = run.stage(measure_compressed, model, plan)
        run.stage(recover, model, plan)
    if run.config.checkpoint.save:
        model = run.stage(save, model, plan)
    run.stage(compare, model, plan, dense, compressed)
    return plan


def prune(run: Run, model: PlacedModel) -> PruningPlan:
    """Remove units from a model in place, and return the plan that says which ones stay (FLAP, section 3)."""
    statistics = calibrate(run, model)  # of the inputs of each output projection
    scores = run.stage(score, model, statistics)  # how much each unit matters
    plan = run.stage(allocate, model, scores)  # which units stay within the budget
    run.stage(compress, model, statistics, plan)  # the others are removed, with compensation
    return plan


def prune_in_sequence(run: Run, model: PlacedModel) -> PruningPlan:
    """As `prune`, but each layer is calibrated on the outputs of the layers that are pruned already (Wanda-sp)."""
    return run.stage(prune_layers, model, calibrate(run, model))


def calibrate(run: Run, model: PlacedModel) -> list[LayerStatistics]:
    """Return the statistics of all layers, if a choice needs plain ones; the dense model may write a text before."""
    for use in run.own_texts:
        run.stage(write_own_text, model, use)
    if run.choices.vocabulary is not None:
        run.stage(rank_tokens, model)
    return run.stage(observe, model) if run.choices.read_plain_statistics else []
