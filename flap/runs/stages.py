"""The stages of a run before and after the method: loading, measuring, training, saving."""

import logging
from dataclasses import replace

from flap.allocation import PruningPlan
from flap.checkpoint.save import make_label
from flap.checkpoint.save import save as save_checkpoint
from flap.evaluation import Measurement
from flap.export.gguf import export_gguf
from flap.models import PlacedModel, adapt
from flap.recovery import training_windows
from flap.results import device_name
from flap.runs.ledger import stage
from flap.runs.model_sizes import count_dense
from flap.runs.run import Run
from flap.storage import WorkFolder, digest, ranks
from flap.vocabulary.rows import cut_rows

log = logging.getLogger(__name__)

# The largest file that transformers writes; safetensors first copies all tensors of a file from a GPU to the host.
SHARD_BYTES = 50e9
VERIFIED_TOKENS = 32  # the predictions of so many tokens are compared after saving
GGUF_BYTES = {  # of one parameter
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625, "q5_1": 0.75, "q5_0": 0.6875, "q4_1": 0.625, "q4_0": 0.5625,
}  # fmt: skip


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
    measured = run.suite.dense(model, run.keys.dense, run.cache)
    run.passes_before = model.passes
    return measured


@stage("evaluate")
def measure_compressed(run: Run, work: WorkFolder, model: PlacedModel, plan: PruningPlan) -> Measurement:
    """Return the numbers of the pruned model before it is trained."""
    return run.suite.pruned(model, run.keys.dense | run.keys.compressed(plan))


@stage("recover")
def recover(run: Run, work: WorkFolder, model: PlacedModel, plan: PruningPlan) -> None:
    """Train the compressed model in place to predict what the dense one predicts."""
    from flap.recovery.distillation import recover as train  # here: other runs do not wait for transformers' Trainer

    place = (work / digest(plan.to_dict())).path
    recovery, teacher = run.choices.recovery, run.source.open()
    assert recovery and place
    windows = run.texts[recovery.use]
    if run.trimmed is not None:
        cut_rows(teacher, run.trimmed.rows_K)
        windows = replace(windows, tokenizer=run.trimmed.tokenizer)
    tokens_NT = training_windows(recovery, windows)
    run.report.recovery = train(recovery, model, teacher, tokens_NT, place, run.config.seed)


@stage("save")
def save(run: Run, work: WorkFolder, model: PlacedModel, plan: PruningPlan) -> PlacedModel:
    """Write the checkpoint, which has to reload to the same logits; return the model for further work."""
    source, config = run.source, run.config
    run.report.checkpoint = str(run.target)
    about = make_label(plan.to_dict(), run.report.provenance)

    def write() -> None:
        save_checkpoint(model, run.tokenizer, run.target, about, run.replaces_checkpoint, source.processor_files)
        if "gguf" in config.checkpoint.formats:
            log.info("wrote %s", export_gguf(run.target, config.checkpoint.gguf_type))

    ranks.on_first(write)
    return model.saved_in(run.target)


@stage("evaluate")
def compare(
    run: Run,
    work: WorkFolder,
    model: PlacedModel,
    plan: PruningPlan,
    dense: Measurement,
    compressed: Measurement | None,
) -> None:
    """Measure the pruned model, and both models side by side where their times are compared; report the differences."""
    key, report = run.keys.dense | run.keys.pruned(plan), run.report
    pruned = run.suite.pruned(model, key)
    report.compare(dense, pruned, run.suite.averages(pruned.numbers), compressed)
    report.note_peak()  # before a measurement resets the counters
    pair = run.suite.side_by_side(run.reopen or run.source.open, run.source.num_bytes, model, key | run.keys.timed)
    for which, numbers in zip(("dense", "pruned"), pair, strict=True):
        report.evaluation[which] |= numbers
