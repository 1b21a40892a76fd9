"""The stages of the method: write, calibrate, score, allocate, compress. Each states what it takes, and its key."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from flap.allocation import PruningPlan, UniformLayers
from flap.calibration import STATISTICS, LayerStatistics
from flap.calibration.own_text import SEQ_LEN, WRITTEN, Draft, bytes_to_write, passes_to_write, text_of
from flap.calibration.own_text import write as write_text
from flap.calibration.recorder import recorded_bytes
from flap.checkpoint.convert import become_checkpointable
from flap.compression import CompressLayer, FitReport, SequentialPruning, mask_layer, slice_layer
from flap.compression import compress as compress_layers
from flap.compression.linear import fit_bytes
from flap.importance import SCORES, SCORES_VERSION, Scores, score_layers
from flap.importance.obs import obs_bytes, obs_operations
from flap.models import PlacedModel
from flap.results import described
from flap.runs.keys import DIVERGENCES_VERSION
from flap.runs.ledger import Cost, Memory, stage
from flap.runs.model_sizes import count_pruned
from flap.runs.run import Run
from flap.runs.search_cost import cost_of_search
from flap.runs.workload import Workload
from flap.search import PlanDivergence, Search, score_and_try
from flap.storage import NOT_KEPT, WorkFolder, digest, ranks


def _cost_of_writing(run: Workload, model: None, use: str) -> Cost:
    """The keys and values of all layers are kept. A model on disk is loaded, if it fits into memory."""
    tokens, place, shapes = run.own_tokens(use), run.place, run.place.shapes
    in_memory = place.streams and run.fits_in_memory
    attentions = [layer.blocks.attention for layer in shapes.layers]
    width = sum((block.parameters - 2 * block.output_parameters) / block.outputs for block in attentions)
    kept = Memory(work=bytes_to_write(width, shapes.vocabulary, place.dtype.itemsize))
    operations = run.run_operations(tokens, length=SEQ_LEN, head=True)
    return Cost([(place.whole() if in_memory else place.ends()) + kept], passes_to_write(tokens), tokens, operations)


def _written_key(run: Run, model: PlacedModel, use: str) -> Mapping[str, Any]:
    draft = Draft.of(run.texts[use], run.source.max_length)
    return {**run.source.fingerprint, "device": model.device.type, **draft.key}


def _note_written(run: Run, written: dict[str, Any], model: PlacedModel, use: str) -> None:
    run.texts[use] = run.texts[use].written(text_of(written))
    facts = {name: value for name, value in written.items() if name != "documents"}
    run.report.own_text[use] = {**facts, "cache": run.states[write.name]}
    run.introduce()


@stage("write", _cost_of_writing, WRITTEN, _written_key, _note_written)
def write(run: Run, work: WorkFolder, model: PlacedModel, use: str) -> dict[str, Any]:
    """Return the text `self` for a use, as the model writes it; runs with the same model and options share it."""
    return write_text(model, Draft.of(run.texts[use], run.source.max_length), work / use)


def _cost_of_statistics(run: Workload, model: None) -> Cost:
    place, layer = run.place, run.place.layer() + run.place.run(run.batch_tokens, recorded_bytes(covariance=False))
    entered = [place.ends(head=False) + place.states(run.tokens, 1)] if place.streams else []
    # in memory, one forward pass does for all layers
    states = place.states(run.tokens, 2) if place.streams else Memory()
    operations, files = run.observe_operations(covariance=False), run.window_files
    return Cost([*entered, layer + states], 1, run.tokens, operations, files=2 * files, left=files)


@stage("calibrate", _cost_of_statistics, STATISTICS, lambda run, *inputs: run.keys.statistics)
def observe(run: Run, work: WorkFolder, model: PlacedModel) -> list[LayerStatistics]:
    """Return the statistics of every layer, without covariances, on the outputs of the dense layers before it."""
    return run.calibration(model, []).observe(work)


def _scores_key(run: Run, *inputs: Any) -> Mapping[str, Any] | None:
    """The key of scores, for any ratio; those from plain statistics are made anew. A search's depend on its trials."""
    metric, structure, options = run.choices.metric, run.choices.structure, described(run.config)
    scores = {"scores": SCORES_VERSION, "metric": options["metric"]}
    if isinstance(structure, Search):
        scores |= {"trials": structure.trial_options, "search": DIVERGENCES_VERSION}
        scores["compensation"] = options["compensation"]
    elif not metric.needs_covariance:
        return None
    return {**run.keys.statistics, **run.choices.code, **scores}


def _cost_of_scores(run: Workload, *inputs: None) -> Cost:
    place, covariance = run.place, run.choices.metric.needs_covariance
    scoring = place.factors(lambda i, o: obs_bytes(i, o, place.dtype.itemsize)) if covariance else place.plain()
    operations = run.block_operations(obs_operations) if covariance else 0.0
    if walk := run.search_walk:
        searched = cost_of_search(run, walk, scoring, covariance)
        return replace(searched, operations=searched.operations + operations)
    if not covariance:
        return Cost([place.layer() + scoring], 1)
    moments = place.observed(_windows(run), scoring, run.batch_tokens, sets=1)
    operations, files = operations + run.observe_operations(covariance=True), run.window_files
    return Cost(moments, 1, run.tokens, operations, files=2 * files, left=files)


@stage("score", _cost_of_scores, SCORES, _scores_key)
def score(run: Run, work: WorkFolder, model: PlacedModel, statistics: Sequence[LayerStatistics]) -> Scores:
    """Return how much each unit matters; a search also tries each block with fewer of them."""
    calibration, metric, structure = run.calibration(model, statistics), run.choices.metric, run.choices.structure
    if isinstance(structure, Search):
        divergence = PlanDivergence(calibration, run.choices.compensation)
        return score_and_try(metric, structure, run.budget, divergence, work)
    work = model.kept(work) if metric.needs_covariance else NOT_KEPT
    visits = calibration.visit("score", metric.needs_covariance, work, apart=False)
    return score_layers(metric, model.adapter, visits, work)


@stage("allocate", lambda run, *inputs: Cost([run.place.layer()]))
def allocate(run: Run, work: WorkFolder, model: PlacedModel, scores: Scores) -> PruningPlan:
    """Return the plan: which units stay within the budget."""
    plan = run.choices.structure.allocate(scores, run.budget)
    return run.budget.named(ranks.on_first(lambda: plan))


def _cost_of_compression(run: Workload, *inputs: None) -> Cost:
    place, changed = run.place, run.kept_layers if run.place.streams else 0.0
    if not run.choices.compensation.needs_covariance:
        return Cost([place.layer() + place.plain() + run.pruned], 1, files=changed, left=changed)
    factors = place.factors(lambda i, o: fit_bytes(i, o, trial=False))
    moments = place.observed(_windows(run) + run.pruned, factors, run.batch_tokens)
    operations = run.observe_operations(covariance=True) + run.fit_operations
    files = run.window_files
    return Cost(moments, 1, run.tokens, operations, files=changed + 2 * files, left=changed + files)


@stage("compress", _cost_of_compression)
def compress(
    run: Run, work: WorkFolder, model: PlacedModel, statistics: Sequence[LayerStatistics], plan: PruningPlan
) -> None:
    """Remove the units that the plan does not keep, with compensation."""
    compensation = run.choices.compensation
    # named by the plan, so that layers of two plans are never mixed
    work = model.kept(work / digest(plan.to_dict()))
    visits = run.calibration(model, statistics).visit("compress", compensation.needs_covariance, work, changing=True)
    fits = compress_layers(model.adapter, plan, compensation, visits, _compress_layer(run), work)
    _report(run, model, plan, fits)


def _cost_in_sequence(run: Workload, *inputs: None) -> Cost:
    """Each layer runs before and after it is pruned."""
    place, choices, changed = run.place, run.choices, run.kept_layers if run.place.streams else 0.0
    states, files = _windows(run) + run.pruned, run.window_files * choices.metric.needs_statistics
    operations = run.observe_operations(choices.need_covariance) + run.run_operations(run.tokens, 1 - run.ratio)
    operations += run.block_operations(obs_operations) if choices.metric.needs_covariance else 0.0
    operations += run.fit_operations if choices.compensation.needs_covariance else 0.0
    layer = place.layer() + states
    recorded = layer + place.run(run.batch_tokens, recorded_bytes(covariance=False))
    moments = [place.ends(head=False) + states, recorded, layer + place.plain()]
    if choices.need_covariance:
        moments = [*_cost_of_scores(run).moments, *_cost_of_compression(run).moments]
    return Cost(moments, 1, 2 * run.tokens, operations, files=changed + 2 * files, left=changed + files)


@stage("prune", _cost_in_sequence)
def prune_layers(run: Run, work: WorkFolder, model: PlacedModel, statistics: Sequence[LayerStatistics]) -> PruningPlan:
    """Score, allocate and compress each layer before the next one is calibrated on its outputs; return the plan."""
    choices = run.choices
    structure = cast(UniformLayers, choices.structure)  # as it was checked
    pruning = SequentialPruning(choices.metric, structure, choices.compensation, _compress_layer(run))
    plan, fits = pruning.prune(run.calibration(model, statistics), run.budget, work)
    plan = run.budget.named(plan)
    _report(run, model, plan, fits)
    return plan


def _windows(run: Workload) -> Memory:
    """The calibration windows in a walk; of a model on disk in files, with inputs and outputs of a layer."""
    files = run.place.streams and (run.choices.metric.needs_statistics or not run.choices.in_sequence)
    return run.place.states(run.tokens, 2 if files else 1, files)


def _compress_layer(run: Run) -> CompressLayer:
    return mask_layer if run.config.mask_only else slice_layer


def _spare_parameters(run: Run, plan: PruningPlan) -> float:
    """Return how many parameters a target leaves besides those of a plan; biases of uniform widths are among these."""
    if run.choices.structure.layer_by_layer:
        return math.inf
    size = {"parameters": 1, "bytes": run.source.dtype.itemsize}
    widths, bounds = run.budget.widths(plan), [one for one in run.budget.bounds if one.target in size]
    return min(((one.asked - one.cost(widths)) / size[one.target] for one in bounds), default=math.inf)


def _report(run: Run, model: PlacedModel, plan: PruningPlan, fits: Mapping[str, FitReport]) -> None:
    """Report what became of the model, which gets the class that its checkpoint is loaded with."""
    report = run.report
    report.statistics_cache = run.states.get(observe.name, "off")
    report.weight_passes = model.passes - run.passes_before
    report.repairs = {block: fit._asdict() for block, fit in fits.items()}
    if run.budget.kept(plan) < run.budget.total:
        report.loads_with = become_checkpointable(model, _spare_parameters(run, plan))
    count_pruned(report, model.adapter, plan, run.budget, masked=run.config.mask_only)
