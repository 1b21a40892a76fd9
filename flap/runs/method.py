"""The stages of the method: write, calibrate, score, allocate, compress. Each states what its result depends on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flap.allocation import Budget, PruningPlan, Structure
from flap.calibration import STATISTICS, Calibration, LayerStatistics
from flap.calibration.writing import WRITTEN, Draft, text_of
from flap.calibration.writing import write as write_text
from flap.checkpoint.convert import become_checkpointable
from flap.compression import CompressLayer, FitReport, SequentialPruning, mask_layer, slice_layer
from flap.compression import compress as compress_layers
from flap.config import in_time
from flap.importance import SCORES, SCORES_VERSION, Scores
from flap.models import PlacedModel
from flap.results import described
from flap.results.model_sizes import count_pruned
from flap.runs.keys import DIVERGENCES_VERSION
from flap.runs.layer_times import LayerTimes
from flap.runs.ledger import stage
from flap.runs.run import Run
from flap.search import PlanDivergence
from flap.storage import Kind, WorkFolder, as_json, digest

DIVERGENCES: Kind[list[float]] = as_json("divergences")  # of plans, in nats a token


def calibrate(run: Run, model: PlacedModel) -> Calibration:
    """Return the windows, with statistics of the inputs of each output projection where a choice needs plain ones.

    Of the texts of calibration and recovery the model may write one itself.
    """
    run.passes_before = model.passes
    for use in [use for use, known in run.texts.items() if known.to_write is not None]:
        written = run.stage(write, model, use, Draft.of(run.texts[use], run.source.max_length))
        run.texts[use] = run.texts[use].written(text_of(written))
        facts = {name: value for name, value in written.items() if name != "documents"}
        run.report.own_text[use] = {**facts, "cache": run.states[write.name]}
    run.introduce()  # with what the model has written
    windows, images = run.windows, run.images.windows if run.images else ()
    by_length, texts = (windows.by_length, windows.text_by_length) if windows else ([], ())
    calibration = Calibration(model, by_length, run.config.calibration.batch_size, [], images=images, texts=texts)
    if windows and run.choices.read_plain_statistics:
        calibration = replace(calibration, layers=run.stage(observe, calibration))
    return calibration


def _written_key(run: Run, model: PlacedModel, use: str, draft: Draft) -> Mapping[str, Any]:
    return {**run.source.fingerprint, "device": model.device.type, **draft.key}


@stage("write", WRITTEN, _written_key)
def write(run: Run, work: WorkFolder, model: PlacedModel, use: str, draft: Draft) -> dict[str, Any]:
    """Return the text `self` for a use, as the model writes it; runs with the same model and options share it."""
    return write_text(model, draft, work / use)


@stage("calibrate", STATISTICS, lambda run, calibration: run.keys.statistics)
def observe(run: Run, work: WorkFolder, calibration: Calibration) -> list[LayerStatistics]:
    """Return the statistics of every layer, without covariances, on the outputs of the dense layers before it."""
    return calibration.observe(work)


def divergences_key(run: Run, measured: Mapping[str, Any]) -> Mapping[str, Any]:
    """The key of divergences of plans. measured: the plans, and on how many tokens."""
    search = {"search": DIVERGENCES_VERSION, "compensation": described(run.config)["compensation"]}
    return {**measured, **run.keys.statistics, **search}


def _scores_key(run: Run, calibration: Calibration) -> Mapping[str, Any] | None:
    """The key of scores, for any ratio; those from plain statistics are made anew. A search's depend on its trials."""
    metric, structure = run.choices.metric, run.choices.structure
    if not metric.needs_covariance and not structure.measures:
        return None
    scores = {"scores": SCORES_VERSION, "metric": described(run.config)["metric"]}
    searched = divergences_key(run, {"trials": structure.trial_options}) if structure.measures else {}
    return {**searched, **run.keys.statistics, **scores}


@stage("score", SCORES, _scores_key)
def score(run: Run, work: WorkFolder, calibration: Calibration) -> Scores:
    """Return how much each unit matters; a search also tries each block with fewer of them."""
    return measuring(run, calibration).score(run.choices.metric, calibration, run.budget, work)


def measuring(run: Run, calibration: Calibration) -> Structure:
    """Return the structure of a run. A search gets what it measures plans by; what is measured is cached."""

    def cached(measured: Mapping[str, Any], measure: Callable[[], list[float]]) -> list[float]:
        return run.cache.get(DIVERGENCES, divergences_key(run, measured), measure)[0]

    divergence = PlanDivergence(calibration, run.choices.compensation, run.work, cached)
    return run.choices.structure.measuring(divergence)


@stage("allocate")
def allocate(run: Run, work: WorkFolder, calibration: Calibration, scores: Scores) -> PruningPlan:
    """Return the plan: which units stay within the budget. A budget in time is corrected by what plans take."""
    structure = measuring(run, calibration)

    def plan_of(budget: Budget) -> PruningPlan:
        return budget.named(structure.allocate(scores, budget))

    if not in_time(run.config.target):
        return plan_of(run.budget)
    run.budget, plan = _layer_times(run).settle(calibration.model, run.budget, plan_of)
    return plan


@stage("time layers")
def time_layers(run: Run, work: WorkFolder, model: PlacedModel) -> None:
    """Set the budget of targets in time, from times that are measured on this device; they are cached.

    Raises:
        ValueError: there is no room for a narrower model beside this one, or no plan is as fast.
    """
    times = _layer_times(run)
    run.budget = run.budget.within(times.bounds(run.config.target, times.measure(model)))
    run.choices.structure.check(run.budget)


def _layer_times(run: Run) -> LayerTimes:
    key = run.source.fingerprint | run.keys.timed
    return LayerTimes(run.budget, run.choices.request, run.choices.structure, run.cache, key)


@stage("compress")
def compress(run: Run, work: WorkFolder, calibration: Calibration, plan: PruningPlan) -> None:
    """Remove the units that the plan does not keep, with compensation."""
    model, compensation = calibration.model, run.choices.compensation
    # named by the plan, lest layers of two plans come together
    work = model.kept(work / digest(plan.to_dict()))
    visits = calibration.visit("compress", compensation.needs_covariance, work, changing=True)
    _report(run, model, plan, compress_layers(model.adapter, plan, compensation, visits, _compress_layer(run), work))


@stage("prune")
def prune_layers(run: Run, work: WorkFolder, calibration: Calibration) -> PruningPlan:
    """Score, allocate and compress each layer before the next one is calibrated on its outputs; return the plan."""
    choices = run.choices
    pruning = SequentialPruning(choices.metric, choices.structure, choices.compensation, _compress_layer(run))
    plan, fits = pruning.prune(calibration, run.budget, work)
    plan = run.budget.named(plan)
    _report(run, calibration.model, plan, fits)
    return plan


def _compress_layer(run: Run) -> CompressLayer:
    return mask_layer if run.config.mask_only else slice_layer


def _report(run: Run, model: PlacedModel, plan: PruningPlan, fits: Mapping[str, FitReport]) -> None:
    """Report what became of the model, which gets the class that its checkpoint is loaded with."""
    report = run.report
    report.statistics_cache = run.states.get(observe.name, "off")
    report.search_nats, report.weight_passes = list(plan.nats), model.passes - run.passes_before
    report.repairs = {block: fit._asdict() for block, fit in fits.items()}
    if run.budget.kept(plan) < run.budget.total:
        report.loads_with = become_checkpointable(model)
    count_pruned(report, model.adapter, plan, run.budget, masked=run.config.mask_only)
    if in_time(run.config.target):
        report.note_times(run.choices.request.timed(model.model))
