"""The scale on which units of different layers are compared: z-scores as in FLAP, or the error of their removal.

Legend: G attention units · C channels a unit · I neurons.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flap.config import require
from flap.method.allocation.budget import Budget
from flap.method.allocation.ranking import standardise
from flap.method.allocation.structure import Structure
from flap.method.importance import Scores
from flap.models import Pair

SCALES = ("z-score", "error", "relative")


@dataclass(frozen=True, kw_only=True)
class Scaled(Structure):
    """The base class of structures that rank the units of all layers together.

    z-score = standardised over all channels of one layer and module type, and averaged over a unit's channels;
    it has no common meaning across layers. error = the squared output error of a unit (the sum of its scores) per
    parameter. relative = that error relative to the residual stream of an ordinary token, ‖e‖² / ‖h‖², per parameter.
    An error counts in its layer's output as a router weighs it (`Scores.routed_power`).
    """

    scale: str = "z-score"  # or error, or relative

    def __post_init__(self) -> None:
        require(self.scale in SCALES, "structure.scale", self.scale, f"one of {', '.join(SCALES)}")

    @property
    def ranks_errors(self) -> bool:
        """Whether scores must be squared output errors: for every scale but z-score."""
        return self.scale != "z-score"

    def on_one_scale(self, scores: Scores, budget: Budget) -> list[Pair[Tensor]]:
        """Return score_G and score_I of each layer on the scale `scale`, in float64, higher = keep."""
        if not self.ranks_errors:
            return [Pair(standardise(layer.attention).mean(dim=1), standardise(layer.mlp)) for layer in scores.layers]
        weights = scores.inverse_power if self.scale == "relative" else [1.0] * len(scores.layers)
        errors = [_errors(scores, i) for i in range(len(scores.layers))]
        return [
            Pair(*(error_U / price * weight for error_U, price in zip(layer, prices, strict=True)))
            for layer, prices, weight in zip(errors, budget.prices, weights, strict=True)
        ]


def _errors(scores: Scores, layer: int) -> Pair[Tensor]:
    """Return the squared error of the layer's output that each unit's removal causes.

    Where a unit is one of every member: times the number of members, as the ranking takes the mean over them.
    """
    score_GC, score_I = scores.layers[layer]
    power = scores.routed_power[layer] if scores.routed_power else ()
    error_I = score_I.double()
    if power:
        power_M1 = len(power) * torch.tensor(power, dtype=torch.float64)[:, None]
        error_I = (error_I.unflatten(0, (len(power), -1)) * power_M1).flatten()
    return Pair(score_GC.double().sum(dim=1), error_I)
