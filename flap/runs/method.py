"""The stages of the method: calibrate, score, allocate, compress. `flap.pipeline` has their order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from flap.checkpoint.convert import become_checkpointable
from flap.method.allocation import Given, PruningPlan, UniformLayers
from flap.method.calibration import STATISTICS, LayerStatistics
from flap.method.compression import (
    CompressLayer,
    FitReport,
    SequentialPruning,
    mask_layer,
    slice_layer,
)
from flap.method.compression import compress as compress_layers
from flap.method.importance import SCORES, Scores, score_layers
from flap.method.search import PlanDivergence, Search, score_and_try
from flap.models import PlacedModel
from flap.runs.run import Run
from flap.storage import NOT_KEPT, WorkFolder, digest
from flap.storage.ranks import by_first


@dataclass(frozen=True)
class Pruned:
    """What pruning has made of a model, which it has changed in place."""

    plan: PruningPlan
    fits: Mapping[str, FitReport]  # of linear compensation, by block
    loads_with: str  # what is needed to load the model, and why; empty if nothing was removed


def observe(run: Run, model: PlacedModel) -> list[LayerStatistics]:
    """Return the statistics of every layer, without covariances, on the outputs of the dense layers before it.

    Empty where no choice needs such.
    """
    if not run.choices.read_plain_statistics:
        return []
    return run.cached("calibrate", STATISTICS, run.keys.statistics, run.calibration(model).observe)


def score(run: Run, model: PlacedModel, statistics: Sequence[LayerStatistics]) -> Scores:
    """Return how much each unit matters, nothing if a plan is given; a search also tries each block with fewer."""
    if isinstance(run.choices.structure, Given):
        return Scores(())
    calibration = run.calibration(model, statistics)
    metric = run.choices.metric
    structure = run.choices.structure

    def make(work: WorkFolder) -> Scores:
        if isinstance(structure, Search):
            divergence = PlanDivergence(calibration, run.choices.compensation)
            return score_and_try(metric, structure, run.budget, divergence, work)
        work = model.if_streamed(work) if metric.needs_covariance else NOT_KEPT
        visits = calibration.visit("score", metric.needs_covariance, work, separate_held_out=False)
        return score_layers(metric, model.adapter, visits, work)

    return run.cached("score", SCORES, run.keys.scores, make)


def allocate(run: Run, scores: Scores) -> PruningPlan:
    """Return the plan: which units stay within the budget."""
    with run.timed("allocate"):
        return run.budget.named(by_first(run.choices.structure.allocate)(scores, run.budget))


def compress(
    run: Run, model: PlacedModel, statistics: Sequence[LayerStatistics], plan: PruningPlan
) -> Pruned:
    """Remove the units that the plan does not keep, with compensation."""
    compensation = run.choices.compensation
    covariance = run.choices.compensation.needs_covariance
    with run.timed("compress") as folder:
        work = model.if_streamed(
            folder / digest(plan.to_dict())
        )  # by the plan, so that layers of two are never mixed
        visits = run.calibration(model, statistics).visit(
            "compress", covariance, work, changing=True
        )
        fits = compress_layers(
            model.adapter, plan, compensation, visits, _compress_layer(run), work
        )
        return _pruned(run, model, plan, fits)


def prune_in_sequence(run: Run, model: PlacedModel) -> Pruned:
    """Score, allocate and compress each layer before the next one is calibrated on its outputs (Wanda-sp)."""
    choices, structure = (
        run.choices,
        cast(UniformLayers, run.choices.structure),
    )  # as it was checked
    with run.timed("prune") as work:
        pruning = SequentialPruning(
            choices.metric, structure, choices.compensation, _compress_layer(run)
        )
        plan, fits = pruning.prune(run.calibration(model), run.budget, work)
        return _pruned(run, model, run.budget.named(plan), fits)


def _compress_layer(run: Run) -> CompressLayer:
    return mask_layer if run.config.mask_only else slice_layer


def _pruned(
    run: Run, model: PlacedModel, plan: PruningPlan, fits: Mapping[str, FitReport]
) -> Pruned:
    """Check the widths of a pruned model, and give it the class that its checkpoint is loaded with.

    Raises:
        RuntimeError: the tensors do not agree with the plan.
    """
    loads_with = ""
    if run.budget.kept(plan) < run.budget.total:
        loads_with = become_checkpointable(model, _spare_parameters(run, plan))
    adapter = model.adapter
    planned = [tuple(map(len, layer)) for layer in plan.layers]
    actual = [
        tuple(block.num_units for block in adapter.blocks(i)) for i in range(len(adapter.layers))
    ]
    if actual != planned and not run.config.mask_only:
        raise RuntimeError(
            f"the plan keeps {planned} KV heads and neurons, the layers have {actual}"
        )
    return Pruned(plan, fits, loads_with)


def _spare_parameters(run: Run, plan: PruningPlan) -> float:
    """Return how many parameters a target allows besides those of a plan; biases of uniform widths are among these."""
    if run.choices.structure.layer_by_layer:
        return math.inf
    widths = run.budget.widths(plan)
    bounds = [one for one in run.budget.bounds if one.size]
    return min(((one.asked - one.cost(widths)) / one.size for one in bounds), default=math.inf)
