"""Whole plans: one that differs in a layer, and what plans diverge from the dense model."""

from collections.abc import Sequence

from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.calibration import Calibration
from flap.method.compression import Compensation
from flap.method.search import PlanDivergence


def with_layer(plan: PruningPlan, index: int, layer: LayerPlan) -> PruningPlan:
    """The plan with another layer at a place."""
    return PruningPlan((*plan.layers[:index], layer, *plan.layers[index + 1 :]))


def divergences(
    calibration: Calibration,
    compensation: Compensation,
    plans: Sequence[PruningPlan],
    num_tokens: int,
) -> list[float]:
    """The divergence of each plan, all measured in one walk."""
    measure = PlanDivergence(calibration, compensation)
    covariance = compensation.needs_covariance
    return measure(lambda i, _: [plan.layers[i] for plan in plans], num_tokens, covariance)
