"""Sequential pruning, as in Wanda-sp: each layer is calibrated on the outputs of the pruned layers before it."""

import json
from pathlib import Path

from flap.allocation import Budget, LayerPlan, PruningPlan, Structure
from flap.calibration import Calibration
from flap.compression.apply import CompressLayer
from flap.compression.compensation import Compensation, FitReport
from flap.importance import Metric, score_layer
from flap.storage import write_text


def prune_in_sequence(
    calibration: Calibration,
    metric: Metric,
    structure: Structure,
    compensation: Compensation,
    budget: Budget,
    compress_layer: CompressLayer,
    folder: Path | None,
) -> tuple[PruningPlan, dict[str, FitReport]]:
    """Score, allocate and compress each layer before the next one is calibrated on its outputs.

    structure: one with `layer_by_layer`. folder: an interrupted run resumes from it, unless covariances are needed.
    Returns the plan, and the fit reports by the name of the block.
    """
    covariance, adapter = metric.needs_covariance or compensation.needs_covariance, calibration.model.adapter
    # not resumed: changes in memory, and fit reports, of the earlier start would be lost, and random scores would not
    # be those of an uninterrupted run
    resumes = calibration.model.on_disk and not covariance and metric.needs_statistics
    folder = folder / "prune" if folder is not None and resumes else None
    plans: list[LayerPlan] = []
    reports: dict[str, FitReport] = {}
    for i, observed in calibration.in_sequence(covariance, folder):
        plans += _read_earlier(folder, len(plans), i)
        scores = score_layer(metric, adapter.blocks(i), observed)
        plans.append(structure.allocate_layer(i, scores, budget))
        reports |= compress_layer(adapter, i, plans[i], compensation, observed)
        del observed  # with its covariances, before the next layer's are collected
        if folder is not None:
            write_text(folder / f"plan-{i}.json", json.dumps(plans[i]))
    plans += _read_earlier(folder, len(plans), len(budget.layers))
    return PruningPlan(tuple(plans)), reports


def _read_earlier(folder: Path | None, first: int, end: int) -> list[LayerPlan]:
    """Read the plans of these layers that an interrupted run has written."""
    plans = (json.loads((folder / f"plan-{i}.json").read_text()) for i in range(first, end) if folder is not None)
    return [LayerPlan(*map(tuple, plan)) for plan in plans]
