"""The stages of a run before and after the method: loading, measuring, training, saving. Each states what it takes."""

import logging
import math
from dataclasses import replace

from flap.allocation import PruningPlan
from flap.checkpoint.save import make_label
from flap.checkpoint.save import save as save_checkpoint
from flap.evaluation import Measurement
from flap.evaluation.perplexity import LOGITS_BYTES, Perplexity
from flap.export.gguf import export_gguf
from flap.models import PlacedModel, adapt
from flap.recovery import bytes_to_train, trained_parameters, training_windows
from flap.results import device_name
from flap.runs.ledger import Cost, Memory, stage
from flap.runs.model_sizes import count_dense
from flap.runs.run import Run
from flap.runs.workload import Workload
from flap.storage import WorkFolder, digest, ranks
from flap.vocabulary.rows import cut_rows

log = logging.getLogger(__name__)

# The largest file that transformers writes; safetensors first copies all tensors of a file from a GPU to the host.
SHARD_BYTES = 50e9
VERIFIED_TOKENS = 32  # the predictions of so many tokens are compared after saving
GGUF_BYTES = {  # of one parameter
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625, "q5_1": 0.75, "q5_0": 0.6875, "q4_1": 0.625, "q4_0": 0.5625,
}  # fmt: skip


def _cost_of_loading(run: Workload) -> Cost:
    place = run.place
    read = 0 if place.streams or place.stays_mapped else place.bytes(place.shapes.parameters)
    return Cost([place.weights(0) + Memory(read=read)])


@stage("load", _cost_of_loading)
def load(run: Run, work: WorkFolder) -> PlacedModel:
    """Return the model at its placement, with the units that the structure removes."""
    model = run.source.open(run.work)
    if run.suite.comparisons:  # before it is changed: a given model has no files to be read from again
        run.reopen = run.source.reopening()
    model.adapter = adapt(model.model, run.choices.structure.experts)
    run.report.device, run.report.device_map = device_name(model.device), model.device_map
    count_dense(run.report, model.adapter, run.budget)
    return model


def _cost_of_measuring(run: Workload, kept: float, beside: Memory) -> Cost:
    """Perplexity is measured on the whole model, if it is in memory or has room there; else in a walk.

    kept: the share of the prunable weights. beside: what is in memory besides the dense model.
    """
    moments, passes, tokens, operations, files, left_out = list[Memory](), 0, 0, 0.0, 0.0, list[str]()
    place, streamed = run.place, run.place.streams and not run.fits_in_memory
    for name, task in zip(run.config.eval or {}, run.choices.evaluators, strict=True):
        if not isinstance(task, Perplexity) or task.max_tokens is None:
            left_out.append(f"eval.{name}")
            continue
        batch_tokens = max(task.windows) * task.batch_size
        logits_bytes = min(LOGITS_BYTES, 4 * batch_tokens * place.shapes.vocabulary)
        work = Memory(work=logits_bytes * (2 + place.dtype.itemsize / 4)) + place.run(batch_tokens)
        texts = [
            (length, run.own_windows(max(1, task.max_tokens // length), task.batch_size) * length)
            for length in task.windows
            for _ in task.datasets
        ]
        passes, tokens = passes + len(texts), tokens + sum(count for _, count in texts)
        operations += sum(run.run_operations(count, kept, length, head=True) for length, count in texts)
        states = place.states(sum(count for _, count in texts), 2) if streamed else Memory()
        weights = [place.ends(), place.layer()] if streamed else [place.whole() if place.streams else place.ends()]
        moments += [one + states + work + beside for one in weights]
        files = max(files, states.streams)
    return Cost(moments, passes, tokens, operations, files=files, left_out=tuple(left_out))


@stage("evaluate", lambda run, model: _cost_of_measuring(run, 1, Memory()))
def measure_dense(run: Run, work: WorkFolder, model: PlacedModel) -> Measurement:
    """Return the numbers of the dense model. Runs that measure the same share them."""
    measured = run.suite.dense(model, run.keys.dense, run.cache)
    run.passes_before = model.passes
    return measured


@stage("evaluate", lambda run, *inputs: _cost_of_measuring(run, 1 - run.ratio, run.pruned))
def measure_compressed(run: Run, work: WorkFolder, model: PlacedModel, plan: PruningPlan) -> Measurement:
    """Return the numbers of the pruned model before it is trained."""
    return run.suite.pruned(model, run.keys.dense | run.keys.compressed(plan))


def _cost_of_training(run: Workload, *inputs: None) -> Cost:
    """The dense model runs beside the one that is trained; on a CPU it is in mapped files.

    A backward pass takes the operations of two forward passes; of one where weights have no gradient, as in the head
    and with low-rank updates. On disk are the best state, and two checkpoints with AdamW's moments while one follows
    the other.
    """
    recovery, place = run.choices.recovery, run.place
    assert recovery is not None
    passes = 1 + (2 if recovery.rank is None else 1) + recovery.gradient_checkpointing
    trained, length = recovery.steps * recovery.tokens_a_step // run.processes, recovery.seq_len
    evaluations = 3 + math.ceil(recovery.steps / recovery.steps_an_evaluation)  # before, at the beginning, and after
    measured = recovery.held_out * length * evaluations
    operations = run.run_operations(trained + measured, 1, length, head=True)
    operations += run.run_operations(trained * passes + measured, 1 - run.ratio, length)
    operations += run.head_operations(2 * trained + measured, length)
    needed = bytes_to_train(recovery, run.adapter, run.ratio, place.dtype, place.device, run.processes)
    dense = place.bytes(place.shapes.parameters) if place.shared else 0
    files = 7 * 4 * trained_parameters(recovery, run.adapter, run.ratio)
    total = trained + measured + trained * passes + measured
    return Cost([Memory(work=needed, read=dense)], recovery.steps * (1 + passes), total, operations, files=files)


@stage("recover", _cost_of_training)
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


def _cost_of_saving(run: Workload, *inputs: None) -> Cost:
    """A model on disk is written layer by layer; then it is run, and so is what was written.

    The checkpoint shares the files of changed layers where `Place.links` says so.
    """
    place, tokens = run.place, 2 * VERIFIED_TOKENS
    num_bytes = place.bytes(max(place.shapes.ends, place.shapes.largest_layer))
    read = Memory(weights=num_bytes, read=num_bytes)
    copied = 0 if place.shared else min(place.bytes(run.kept_parameters), SHARD_BYTES)
    whole = [place.ends() + run.pruned + read, place.ends() + Memory(host=copied)]
    gguf = GGUF_BYTES[run.config.checkpoint.gguf_type] if "gguf" in run.config.checkpoint.formats else 0
    written = run.kept_parameters * (place.dtype.itemsize + gguf) - (run.kept_layers if place.links else 0)
    operations = run.run_operations(tokens, 1 - run.ratio, VERIFIED_TOKENS, head=True)
    moments, passes = ([read], 3) if place.streams else (whole, 2)
    return Cost(moments, passes, tokens, operations, checkpoint=written)


@stage("save", _cost_of_saving)
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


@stage("evaluate", lambda run, *inputs: _cost_of_measuring(run, 1 - run.ratio, run.pruned))
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
