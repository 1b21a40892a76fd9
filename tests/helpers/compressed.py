"""Make tiny models with random biases, compute their statistics and plans, and compress them.

The statistics can have co-moments. The co-moment of two channels is the sum, over all tokens, of
the product of the deviations of the two channels from their means. A compensation adapts a layer to
the removal of heads and neurons. It is not fitted to held-out tokens, which serve to choose the
ridge penalty of the fit.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, reduce

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flap.data import Batch
from flap.method.allocation import PruningPlan, price
from flap.method.calibration import Calibration, LayerStatistics, Statistics
from flap.method.calibration.gradients import add_effects
from flap.method.calibration.recorder import Comoments
from flap.method.calibration.statistics import batch_statistics, merge
from flap.method.calibration.symmetric import STRIP, Symmetric
from flap.method.compression import (
    BiasCompensation,
    Compensation,
    CompressLayer,
    LinearCompensation,
    NoCompensation,
)
from flap.method.compression.apply import compress_layers, slice_layer
from flap.method.importance import score_layers
from flap.models import Resident, adapt
from tests.cases import METRICS, STRUCTURES, tiny_model, tokens, with_biases
from tests.helpers.ratios import allocated

COMPENSATIONS = {
    "bias": BiasCompensation(),
    "none": NoCompensation(),
    "linear": LinearCompensation(),
}


def noise(num_tokens: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, channels, generator=torch.Generator().manual_seed(seed))


def with_comoments(batches: Sequence[Tensor]) -> Statistics:
    """Collect the statistics of several batches of activations, with co-moments.

    A batch has the shape (tokens, channels).
    """
    comoments = Comoments()
    together = reduce(merge, map(batch_statistics, batches))
    for batch_TI in batches:
        comoments.add(batch_TI)
    return replace(together, comoments=comoments.finish(together.num_tokens, together.mean_I))


def symmetric(matrix_II: Tensor) -> Symmetric:
    """Convert a float32 matrix to `Symmetric`, the compact form in which co-moments are stored."""
    starts = range(0, len(matrix_II), STRIP)
    return Symmetric(
        tuple(matrix_II[start : start + STRIP, start:].float().contiguous() for start in starts)
    )


def whole(statistics: Statistics) -> Tensor:
    """Return the co-moments of the channels as one square matrix."""
    assert statistics.comoments is not None
    return statistics.comoments.rows(torch.arange(statistics.comoments.size))


def in_parts(fitting_TI: Tensor, held_out_TI: Tensor) -> Statistics:
    """Return the statistics of all tokens, with co-moments.

    The field `parts` has the separate statistics of the tokens for fitting and of the held-out
    tokens.
    """
    parts = with_comoments([fitting_TI]), with_comoments([held_out_TI])
    return replace(merge(*parts), parts=parts)


def covariances(
    model: PreTrainedModel, windows_NT: Tensor, batch_size: int, whole_experts: bool = False
) -> list[LayerStatistics]:
    """Collect the statistics of all layers, with co-moments, and return them in one list.

    For models larger than the tiny models of the tests, such a list would need too much memory.
    """
    placed = Resident(model)
    placed.adapter = adapt(model, whole_experts)
    calibration = Calibration(placed, Batch.of(windows_NT), batch_size, [])
    return [
        observed
        for _, observed in calibration.visit("calibrate", covariance=True)
        if observed is not None
    ]


@cache
def calibrated(
    architecture: str, biased: bool = True
) -> tuple[PreTrainedModel, list[LayerStatistics]]:
    model = with_biases(tiny_model(architecture)) if biased else tiny_model(architecture)
    known = covariances(model, tokens(), 3)
    return model, add_effects(known, Resident(model), [Batch.of(tokens())])


def plan_for(
    architecture: str, metric: str = "WIFV", structure: str = "AL-AM", ratio: float = 0.5
) -> PruningPlan:
    model, known = calibrated(architecture)
    scores = score_layers(METRICS[metric](), adapt(model), enumerate(known))
    budget = price(adapt(model), ratio)
    return allocated(STRUCTURES[structure](), scores, budget)


def changed(
    model: PreTrainedModel,
    plan: PruningPlan,
    compensation: Compensation,
    known: list[LayerStatistics],
    how: CompressLayer = slice_layer,
) -> PreTrainedModel:
    changed = copy.deepcopy(model)
    compress_layers(adapt(changed), plan, compensation, enumerate(known), how)
    return changed


def peculiar(case: str, activation_TI: Tensor) -> Tensor:
    """Give some channels of the activations unusual values in place, and return the activations.

    `case` says whether channels become constant, or equal to other channels.
    """
    if case in ("constant", "zero"):
        activation_TI[:, ::3] = 5.0 if case == "constant" else 0.0
    if case == "all constant":
        activation_TI[:] = 2.0
    if case == "twins":
        activation_TI[:, 1::2] = activation_TI[:, ::2]
    return activation_TI
