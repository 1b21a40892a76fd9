"""Make plans from strings such as "01 0011", and measure how much a plan changes predictions."""

from collections.abc import Sequence

from flap.method.allocation import LayerPlan, PruningPlan
from flap.method.calibration import Calibration
from flap.method.compression import Compensation
from flap.method.search import PlanDivergence


def drawn(kept: str) -> LayerPlan:
    """Make the plan of a layer from a string.

    For example, "01 0011" keeps KV head 1, and neurons 2 and 3, counted from 0.
    """
    heads, neurons = kept.split()
    return LayerPlan(_ones(heads), _ones(neurons))


def _ones(picture: str) -> tuple[int, ...]:
    return tuple(i for i, digit in enumerate(picture) if digit == "1")


def with_layer(plan: PruningPlan, index: int, layer: LayerPlan) -> PruningPlan:
    """Return a copy of the plan in which `layer` is the plan of the layer with this index."""
    return PruningPlan((*plan.layers[:index], layer, *plan.layers[index + 1 :]))


def divergences(
    calibration: Calibration,
    compensation: Compensation,
    plans: Sequence[PruningPlan],
    num_tokens: int,
) -> list[float]:
    """Measure, for every plan, the divergence KL(dense ‖ pruned) of the predictions.

    The layers are read only once for all plans.
    """
    measure = PlanDivergence(calibration, compensation)
    covariance = compensation.needs_covariance
    return measure(lambda i, _: [plan.layers[i] for plan in plans], num_tokens, covariance)
