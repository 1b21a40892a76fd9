"""The stages of a run before and after the method: loading, measuring, training, saving."""

import logging
from typing import Any

from flap.allocation import PruningPlan
from flap.checkpoint.save import make_label
from flap.checkpoint.save import save as save_checkpoint
from flap.evaluation import Measurement
from flap.export.gguf import export_gguf
from flap.models import PlacedModel, adapt
from flap.results import device_name
from flap.results.model_sizes import count_dense
from flap.runs.ledger import stage
from flap.runs.run import Run
from flap.storage import WorkFolder, digest

log = logging.getLogger(__name__)


@stage("load")
def load(run: Run, work: WorkFolder) -> PlacedModel:
    """Return the model at its placement, with the units that the structure removes."""
    model = run.source.open(run.work)
    if run.suite.comparisons:  # before it is changed: a given model has no files to be read from again
        run.reopen = run.source.reopening()
    model.adapter = adapt(model.model, run.choices.structure.experts)
    run.report.device, run.report.device_map = device_name(model.device), model.device_map
    count_dense(run.report, model.adapter, run.budget)
    return model


@stage("evaluate")
def measure_dense(run: Run, work: WorkFolder, model: PlacedModel) -> Measurement:
    """Return the numbers of the dense model. Runs that measure the same share them."""
    return run.suite.dense(model, run.keys.dense, run.cache)


@stage("evaluate")
def measure_compressed(run: Run, work: WorkFolder, model: PlacedModel, plan: PruningPlan) -> Measurement:
    """Return the numbers of the pruned model before it is trained."""
    return run.suite.pruned(model, run.keys.dense | run.keys.compressed(plan))


@stage("recover")
def recover(run: Run, work: WorkFolder, model: PlacedModel, plan: PruningPlan) -> None:
    """Train the compressed model in place to predict what the dense one predicts."""
    from flap.recovery.distillation import recover as train  # here: other runs do not wait for transformers' Trainer

    place = (work / digest(plan.to_dict())).path
    assert run.choices.recovery and place
    [tokens_NT] = run.texts["recovery"].by_length
    run.report.recovery = train(run.choices.recovery, model, run.source, tokens_NT, place, run.config.seed)


@stage("save")
def save(run: Run, work: WorkFolder, model: PlacedModel, plan: PruningPlan) -> PlacedModel:
    """Write the checkpoint, which has to reload to the same logits; return the model for further work."""
    source, config = run.source, run.config
    run.report.checkpoint = str(run.target)
    about = make_label(plan, run.report.provenance)
    replaces, beside = run.replaces_checkpoint, source.processor_files
    model = save_checkpoint(model, source.tokenizer, run.target, about, replaces, beside)
    if "gguf" in config.checkpoint.formats:
        log.info("wrote %s", export_gguf(run.target, config.checkpoint.gguf_type))
    return model


@stage("evaluate")
def compare(
    run: Run, work: WorkFolder, model: PlacedModel, plan: PruningPlan, dense: Measurement, compressed: Any
) -> None:
    """Measure the pruned model, and both models side by side where their times are compared; report the differences."""
    key, report = run.keys.dense | run.keys.pruned(plan), run.report
    pruned = run.suite.pruned(model, key)
    report.compare(dense, pruned, run.suite.averages(pruned.numbers), compressed)
    report.note_peak()  # before a measurement resets the counters
    pair = run.suite.side_by_side(run.reopen or run.source.open, run.source.num_bytes, model, key | run.keys.timed)
    for which, numbers in zip(("dense", "pruned"), pair, strict=True):
        report.evaluation[which] |= numbers
