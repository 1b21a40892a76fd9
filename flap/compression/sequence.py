"""Sequential pruning, as in Wanda-sp: each layer is calibrated on the outputs of the pruned layers before it."""

from flap.allocation import Budget, LayerPlan, PruningPlan, Structure
from flap.calibration import Calibration
from flap.compression.apply import CompressLayer, joined
from flap.compression.compensation import Compensation, FitReport
from flap.importance import Metric, score_layer
from flap.storage import NOT_KEPT, Notes, WorkFolder, as_json

DECIDED = as_json("decided")  # the plan of a layer, and its fit reports


def prune_in_sequence(
    calibration: Calibration,
    metric: Metric,
    structure: Structure,
    compensation: Compensation,
    budget: Budget,
    compress_layer: CompressLayer,
    work: WorkFolder,
) -> tuple[PruningPlan, dict[str, FitReport]]:
    """Score, allocate and compress each layer before the next one is calibrated on its outputs.

    structure: one with `layer_by_layer`. work: an interrupted run resumes from it.
    Returns the plan, and the fit reports by the name of the block.
    """
    covariance, adapter = metric.needs_covariance or compensation.needs_covariance, calibration.model.adapter
    # changes in memory would be lost, and random scores would not be those of an uninterrupted run
    work = calibration.model.kept(work) if metric.needs_statistics else NOT_KEPT
    notes, layers = Notes(DECIDED, work), range(len(budget.layers))
    for i, observed in calibration.in_sequence(covariance, work):
        scores = score_layer(metric, adapter.blocks(i), observed)
        plan = structure.allocate_layer(i, scores, budget)
        notes.write(i, (plan, compress_layer(adapter, i, plan, compensation, observed)))
        del observed  # with its covariances, before the next layer's are collected
    plans, fits = zip(*map(notes.read, layers), strict=True)
    return PruningPlan(tuple(LayerPlan(*map(tuple, plan)) for plan in plans)), joined(fits)
