"""The stages of the method: write, calibrate, score, allocate, compress."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from flap.allocation import PruningPlan, UniformLayers
from flap.calibration import STATISTICS, LayerStatistics
from flap.calibration.own_text import WRITTEN, Draft, text_of
from flap.calibration.own_text import write as write_text
from flap.checkpoint.convert import become_checkpointable
from flap.compression import CompressLayer, FitReport, SequentialPruning, mask_layer, slice_layer
from flap.compression import compress as compress_layers
from flap.importance import SCORES, SCORES_VERSION, Scores, score_layers
from flap.models import PlacedModel
from flap.results import described
from flap.runs.keys import DIVERGENCES_VERSION
from flap.runs.ledger import stage
from flap.runs.model_sizes import count_pruned
from flap.runs.run import Run
from flap.search import PlanDivergence, Search, score_and_try
from flap.storage import NOT_KEPT, WorkFolder, digest, ranks


def _written_key(run: Run, model: PlacedModel, use: str) -> Mapping[str, Any]:
    draft = Draft.of(run.texts[use], run.source.max_length)
    return {**run.source.fingerprint, "device": model.device.type, **draft.key}


def _note_written(run: Run, written: dict[str, Any], model: PlacedModel, use: str) -> None:
    run.texts[use] = run.texts[use].written(text_of(written))
    facts = {name: value for name, value in written.items() if name != "documents"}
    run.report.own_text[use] = {**facts, "cache": run.states[write.name]}
    run.introduce()


@stage("write", WRITTEN, _written_key, _note_written)
def write(run: Run, work: WorkFolder, model: PlacedModel, use: str) -> dict[str, Any]:
    """Return the text `self` for a use, as the model writes it; runs with the same model and options share it."""
    return write_text(model, Draft.of(run.texts[use], run.source.max_length), work / use)


@stage("calibrate", STATISTICS, lambda run, *inputs: run.keys.statistics)
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


@stage("score", SCORES, _scores_key)
def score(run: Run, work: WorkFolder, model: PlacedModel, statistics: Sequence[LayerStatistics]) -> Scores:
    """Return how much each unit matters; a search also tries each block with fewer of them."""
    calibration, metric, structure = run.calibration(model, statistics), run.choices.metric, run.choices.structure
    if isinstance(structure, Search):
        divergence = PlanDivergence(calibration, run.choices.compensation)
        return score_and_try(metric, structure, run.budget, divergence, work)
    work = model.if_streamed(work) if metric.needs_covariance else NOT_KEPT
    visits = calibration.visit("score", metric.needs_covariance, work, apart=False)
    return score_layers(metric, model.adapter, visits, work)


@stage("allocate")
def allocate(run: Run, work: WorkFolder, model: PlacedModel, scores: Scores) -> PruningPlan:
    """Return the plan: which units stay within the budget."""
    plan = run.choices.structure.allocate(scores, run.budget)
    return run.budget.named(ranks.on_first(lambda: plan))


@stage("compress")
def compress(
    run: Run, work: WorkFolder, model: PlacedModel, statistics: Sequence[LayerStatistics], plan: PruningPlan
) -> None:
    """Remove the units that the plan does not keep, with compensation."""
    compensation = run.choices.compensation
    # named by the plan, so that layers of two plans are never mixed
    work = model.if_streamed(work / digest(plan.to_dict()))
    visits = run.calibration(model, statistics).visit("compress", compensation.needs_covariance, work, changing=True)
    fits = compress_layers(model.adapter, plan, compensation, visits, _compress_layer(run), work)
    _report(run, model, plan, fits)


@stage("prune")
def prune_layers(run: Run, work: WorkFolder, model: PlacedModel, statistics: Sequence[LayerStatistics]) -> PruningPlan:
    """Score, allocate and compress each layer before the next one is calibrated on its outputs; return the plan."""
    choices = run.choices
    structure = cast(UniformLayers, choices.structure)  # as it was checked
    pruning = SequentialPruning(choices.metric, structure, choices.compensation, _compress_layer(run))
    plan, fits = pruning.prune(run.calibration(model, statistics), run.budget, work)
    plan = run.budget.named(plan)
    _report(run, model, plan, fits)
    return plan


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
