"""The stages that make the pruned model, in order, from opening the model to saving a checkpoint.

A block is the attention or the MLP of a layer. A unit of a block is a KV head with its query heads,
an MLP neuron or an expert. The metric scores units, and the structure selects the units that stay.
A plan lists these units. A compensation changes output projections to make up for the removed
units. `flap.runs.measuring` has the stages that measure models, and `flap.runs.trimming` the stage
that trims the vocabulary.

`python -m flap` may be invoked several times for the same run, for example again after an
interruption. A later invocation uses the results that an earlier invocation has stored.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

from flap.checkpoint.convert import become_checkpointable
from flap.checkpoint.one_writer import only_writer
from flap.checkpoint.save import make_label, save_checkpoint
from flap.config import one_line
from flap.data import Windows
from flap.method.allocation import Budget, PruningPlan, UniformLayers
from flap.method.calibration import STATISTICS, LayerStatistics, answers, own_text
from flap.method.compression import (
    CompressLayer,
    FitReport,
    SequentialPruning,
    compress_layers,
    mask_layer,
    slice_layer,
)
from flap.method.importance import SCORES, Scores, score_layers
from flap.method.recovery import Recovery
from flap.method.recovery.teacher import Teacher, UntrimmedTeacher
from flap.method.search import PlanDivergence, score_and_try
from flap.method.vocabulary.alignment import Alignment
from flap.method.vocabulary.source import TrimmedSource
from flap.models import ModelSource, Pair, PlacedModel, adapt, find_model
from flap.results.provenance import provenance
from flap.runs import keys
from flap.runs.pruned import MADE
from flap.runs.run import Run
from flap.runtime import ranks
from flap.runtime.ranks import by_first
from flap.runtime.temporary_state import seeded
from flap.storage import NOT_KEPT, Artefact, WorkFolder, digest
from flap.storage.work_folder import open_working_folder

log = logging.getLogger(__name__)

# Facts about the texts that the model has generated for calibration or training, such as the number
# of tokens. Each key is the use of a text, such as "calibration". If the model has only answered
# the prompts of a text, the name of this text follows in parentheses.
Written = dict[str, dict[str, Any]]


class Compressed(NamedTuple):
    """The result of compression, which changes the model in place."""

    plan: PruningPlan
    # Linear compensation predicts the contribution of the removed channels from the channels that
    # stay, with a least-squares fit. The keys of this dict are the names of blocks and experts. The
    # values say how good the prediction is.
    fits: Mapping[str, FitReport]
    # what is needed to load the checkpoint, such as "stock transformers"; "" if no unit was removed
    loads_with: str


@contextmanager
def begun(run: Run) -> Iterator[Run]:
    """Seed all random generators for a `with` block, and yield the run with its working directory.

    The working directory is opened only if the run has a stage or an evaluation task that can
    resume from it after an interruption. With resume=false, results that earlier invocations have
    stored in the run's folder are deleted first.

    Inside the block, no other run writes into the same `checkpoint.dir`. So the weights, the
    flap.json and the model card of a checkpoint always come from the same run.
    """
    for warning in run.warnings:
        log.warning(warning)

    if not run.config.resume and ranks.is_first():
        forget(run)

    looked_up = (run.choices.search or run.to_write) and run.cache.enabled
    continues = any(task.continues for task in run.tasks)
    with ExitStack() as stack:
        stack.enter_context(seeded(run.choices.seed))
        if run.source.placed.streams or looked_up or run.choices.recovery or continues:
            directory = open_working_folder(run.cache.root, keys.workspace(run), run.config.resume)
            work = WorkFolder(stack.enter_context(ranks.held_by_first(directory)))
            run = replace(run, work=work)
        if run.config.checkpoint.dir is not None and run.config.checkpoint.save:
            stack.enter_context(ranks.held_by_first(only_writer(run.target)))
        yield run


def forget(run: Run) -> None:
    """Delete results that earlier invocations of the run have stored in the run's folder."""
    run.results.forget()
    if run.run_dir is not None:
        (run.run_dir / MADE).unlink(missing_ok=True)


def open_dense(run: Run) -> PlacedModel:
    """Open the dense model, and place the weights as `model.placement` says.

    The chosen `structure`, or the plan that the config names, decides whether the units of a
    mixture of experts are neurons or whole experts.
    """
    with run.timed("load"):
        return _opened(run.source, run.work, run.choices.experts)


def open_checkpoint_of(run: Run) -> PlacedModel:
    """Open the checkpoint that an earlier invocation of the run has saved."""
    with run.timed("load"):
        model = replace(run.config.model, path=str(run.target))
        saved = find_model(model, run.cache.root, run.config.trust_remote_code)
        return _opened(saved, run.work / "checkpoint", run.choices.experts)


def _opened(source: ModelSource, work: WorkFolder, experts: bool) -> PlacedModel:
    model = source.open(work)
    model.adapter = adapt(model.model, experts)
    return model


# Texts that the dense model generates for calibration and training


def write_own_texts(run: Run, model: PlacedModel) -> tuple[Run, Written]:
    """Let the dense model generate its texts for calibration and training (`Run.to_write`).

    Return a copy of the run with the generated texts, and facts about these texts.
    """
    facts = Written()
    for use in run.to_write:
        for part in run.texts[use].to_write:
            windows = run.texts[use]
            written = _own_text(run, model, use, part)
            name = use
            if part in windows.asked:
                text = answers.text_of(written.value, windows, part)
                name = f"{use} ({windows.name(part)})"
            else:
                text = own_text.written_text(written.value)

            run = run.reading({**run.texts, use: windows.written(part, text)})
            facts[name] = {**written.value, "cache": written.label.cache}
            facts[name].pop("documents", None)
            facts[name].pop("answered", None)
    return run, facts


def _own_text(run: Run, model: PlacedModel, use: str, part: int) -> Artefact[dict[str, Any]]:
    """Let the model generate a text, or answers to the prompts of a text.

    The result is stored in the cache, so runs with the same model and options share it.

    use: "calibration", or "recovery" for training after compression. part: the index of the text
        among the texts for this use.
    """
    stage = "write own text"
    windows = run.texts[use]
    context = run.source.max_length
    work = run.work / stage
    if part in windows.asked:
        options = answers.key(windows, part)
        write = partial(answers.answer, model, windows, part, context, work / f"{use}{part}")
    else:
        draft = own_text.Draft(windows, context)
        options = draft.key
        write = partial(own_text.write, model, draft, work / use)
    key = keys.on_device(run) | options
    return run.memory.remember(stage, key, write, [run.cache.of(own_text.WRITTEN)])


# The method (FLAP, section 3): observe, score, allocate, compress


def observe(run: Run, model: PlacedModel) -> list[LayerStatistics]:
    """Collect the calibration statistics of every layer, without covariances.

    The model is not pruned yet, so every layer gets the hidden states of the dense model.

    Return an empty list if neither the metric nor the compensation needs these statistics.
    """
    if not run.choices.read_plain_statistics:
        return []
    stage = "calibrate"
    gradients = run.choices.need_gradients
    collect = partial(run.calibration(model).observe, run.work / stage, gradients)
    stores = [run.cache.of(STATISTICS)]
    return run.memory.remember(stage, keys.statistics(run), collect, stores).value


def score(run: Run, model: PlacedModel, statistics: Sequence[LayerStatistics]) -> Scores:
    """Score every unit. With structure=search, also measure the effects of trial prunings.

    In a trial pruning, one block loses its lowest-scored units. The effect is how far this changes
    the predictions of the model.

    statistics: the result of `observe`.
    """
    key = keys.scores(run)
    compute = partial(_score, run, model, statistics)
    stores = [] if key is None else [run.cache.of(SCORES)]
    return run.memory.remember("score", key or {}, compute, stores).value


def _score(run: Run, model: PlacedModel, statistics: Sequence[LayerStatistics]) -> Scores:
    assert run.choices.selection is not None
    metric = run.choices.selection.metric
    search = run.choices.search
    calibration = run.calibration(model, statistics)
    work = run.work / "score"

    if search is not None:
        divergence = PlanDivergence(calibration, run.choices.compensation)
        return score_and_try(metric, search, run.budget, divergence, work)
    work = model.if_streamed(work) if metric.needs_covariance else NOT_KEPT
    visits = calibration.visit("score", metric.needs_covariance, work, separate_held_out=False)
    return score_layers(metric, model.adapter, visits, work)


def allocate(run: Run, scores: Scores) -> PruningPlan:
    """Return the plan, which lists the units that stay."""
    assert run.choices.selection is not None
    with run.timed("allocate"):
        plan = by_first(run.choices.selection.structure.allocate)(scores, run.budget)
        return run.budget.named(plan)


def compress(
    run: Run, model: PlacedModel, statistics: Sequence[LayerStatistics], plan: PruningPlan
) -> Compressed:
    """Remove the units that the plan does not keep, and compensate for their missing outputs."""
    compensation = run.choices.compensation
    with run.timed("compress") as folder:
        # the directory is named after the digest of the plan, so that layers that were pruned
        # with different plans are never mixed
        work = model.if_streamed(folder / digest(plan.to_dict()))
        calibration = run.calibration(model, statistics)
        visits = calibration.visit("compress", compensation.needs_covariance, work, changing=True)
        change = _compress_layer(run.choices.mask_only)
        fits = compress_layers(model.adapter, plan, compensation, visits, change, work)
        return _compressed(run, model, plan, fits)


def keep_all(budget: Budget) -> Compressed:
    """Return the result of a compression that keeps all units and does not change the model."""
    layers = []
    for attention, mlp in budget.layers:
        heads = tuple(range(attention.count * attention.members))
        layers.append(Pair(heads, tuple(range(mlp.count * mlp.members))))
    plan = budget.named(PruningPlan(tuple(layers)))
    return Compressed(plan, fits={}, loads_with="")


def prune_in_sequence(run: Run, model: PlacedModel) -> Compressed:
    """Score and compress one layer after the other, as Wanda-sp does.

    Each layer is calibrated on the outputs of the compressed layers before it.
    """
    assert run.choices.selection is not None
    # `choose` has checked that the structure prunes layer by layer, as only UniformLayers does
    structure = cast(UniformLayers, run.choices.selection.structure)
    with run.timed("prune") as work:
        pruning = SequentialPruning(
            run.choices.selection.metric,
            structure,
            run.choices.compensation,
            _compress_layer(run.choices.mask_only),
        )
        plan, fits = pruning.prune(run.calibration(model), run.budget, work)
        return _compressed(run, model, run.budget.named(plan), fits)


def _compress_layer(mask_only: bool) -> CompressLayer:
    return mask_layer if mask_only else slice_layer


def _compressed(
    run: Run, model: PlacedModel, plan: PruningPlan, fits: Mapping[str, FitReport]
) -> Compressed:
    """Check a compressed model, and give it a class and a config with which it can be saved.

    The check compares the numbers of units in each layer with the plan.

    Raises:
        RuntimeError: the shapes of the tensors do not match the plan.
    """
    loads_with = ""
    if run.budget.kept(plan) < run.budget.total:
        spare = math.inf if run.choices.layer_by_layer else _spare_parameters(run.budget, plan)
        loads_with = become_checkpointable(model, spare)

    adapter = model.adapter
    planned = [tuple(map(len, layer)) for layer in plan.layers]
    actual = [
        tuple(block.num_units for block in adapter.blocks(i)) for i in range(len(adapter.layers))
    ]
    if actual != planned and not run.choices.mask_only:
        raise RuntimeError(
            f"the plan keeps {planned} KV heads and neurons, the layers have {actual}"
        )
    return Compressed(plan, fits, loads_with)


def _spare_parameters(budget: Budget, plan: PruningPlan) -> float:
    """Return how many parameters could be added without exceeding a target; inf without targets.

    A target is an upper limit on a size of the pruned model, such as its bytes. The checkpoint may
    need some of these parameters for biases of zeros, because a class of transformers may have a
    bias in every layer as soon as one layer has a bias.
    """
    widths = budget.widths(plan)
    bounds = [bound for bound in budget.bounds if bound.size]
    return min(
        ((bound.asked - bound.cost(widths)) / bound.size for bound in bounds), default=math.inf
    )


# Training after compression


def recover(run: Run, model: PlacedModel, plan: PruningPlan) -> dict[str, Any]:
    """Train the compressed model in place, so that its predictions become like the dense model's.

    The compressed model is the model after units were removed, before any training. Return facts
    about the training for the report.
    """
    # imported here because runs without training should not wait for the import of transformers'
    # Trainer
    from flap.method.recovery.distillation import distil, training_windows

    recovery = run.choices.recovery
    assert recovery is not None
    with run.timed("recover") as work:
        folder = (work / digest(plan.to_dict())).path
        assert folder is not None
        teacher = _teacher(run.source)
        answered, written = _answered_by(model, run, recovery, work)
        windows = training_windows(recovery, run.texts[recovery.use], answered)
        trained = distil(recovery, model, teacher, windows, folder, run.choices.seed)
        return {**trained, "own_text": written}


def _teacher(source: ModelSource) -> Teacher:
    """Open the dense model as the teacher of the training.

    If the vocabulary was trimmed, the teacher is the dense model with all its tokens.
    """
    if not isinstance(source, TrimmedSource):
        return Teacher(source.open())
    dense = source.source.open()
    rows = dense.adapter.vocab_size
    alignment = Alignment.of(source.source.tokenizer, source.trimmed, rows)
    return UntrimmedTeacher(dense, alignment)


def _answered_by(
    model: PlacedModel, run: Run, recovery: Recovery, work: WorkFolder
) -> tuple[Windows | None, Written]:
    """Let the compressed model answer the prompts of the text on which it will be trained.

    Return the training windows with these answers, and facts about the answers. With
    recover.writer=dense, training uses only answers of the dense model, and the windows are None.
    """
    windows = run.texts[recovery.use]
    facts = Written()
    if recovery.writer == "dense":
        return None, facts

    for part in windows.asked:
        written = answers.answer(
            model, windows, part, run.source.max_length, work / f"answers{part}"
        )
        answered = windows.written(part, answers.text_of(written, windows, part))
        try:
            _ = answered.drawn
        except ValueError as error:  # the answers are too short for the windows
            log.warning(
                "recover.writer=%s: training uses the dense model's answers instead (%s)",
                recovery.writer,
                one_line(error),
            )
            continue
        written.pop("answered")
        windows = answered
        facts[f"training ({windows.name(part)}, after compression)"] = written
    return windows, facts


# The checkpoint


def save(run: Run, model: PlacedModel, plan: PruningPlan, overwrite: bool) -> PlacedModel:
    """Write the checkpoint, and return the saved model for later stages.

    If the reloaded checkpoint computes other logits than the model in memory, an error is raised.
    The file flap.json of the checkpoint contains the key of the run. A later invocation of the run
    recognises the checkpoint by this key.

    overwrite: whether to replace a checkpoint that exists already.
    """
    label = make_label(plan.to_dict(), provenance(run.described), run.key)

    @by_first
    def write_checkpoint() -> None:
        save_checkpoint(
            model, run.source.tokenizer, run.target, label, overwrite, run.source.processor_files
        )

    with run.timed("save"):
        write_checkpoint()
        return model.saved_in(run.target)
