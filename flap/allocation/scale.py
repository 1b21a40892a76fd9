"""The scale on which units of different layers are compared: z-scores as in FLAP, or the error of their removal.

Legend: G attention units · C channels a unit · I neurons.
"""

from dataclasses import dataclass

from torch import Tensor

from flap.allocation.budget import Budget
from flap.allocation.ranking import standardise
from flap.allocation.structure import Structure
from flap.config import require
from flap.importance import Scores
from flap.models import Pair

SCALES = ("z-score", "error", "relative")


@dataclass(frozen=True, kw_only=True)
class Scaled(Structure):
    """The base class of structures that rank the units of all layers together.

    scale: z-score = standardised over all channels of one layer and module type, and averaged over a unit's channels;
    it has no common meaning across layers. error = the squared output error of a unit (the sum of its scores) per
    parameter. relative = that error relative to the residual stream of an ordinary token, ‖e‖² / ‖h‖², per parameter.
    """

    scale: str = "z-score"

    def __post_init__(self) -> None:
        require(self.scale in SCALES, "structure.scale", self.scale, f"one of {', '.join(SCALES)}")

    @property
    def ranks_errors(self) -> bool:
        """Whether scores must be squared output errors: for every scale but z-score."""
        return self.scale != "z-score"

    def check(self, budget: Budget) -> None:
        """Check the options as `Structure.check` does, and the scale.

        Raises:
            ValueError: an option or the ratio does not fit this model, or errors of experts would be compared.
        """
        super().check(budget)
        if self.ranks_errors and budget.has_experts:
            raise ValueError(
                f"structure.scale={self.scale}: an expert's error is one of the tokens routed to it, and compares with "
                "no other; expected z-score for a model with experts"
            )

    def on_one_scale(self, scores: Scores, budget: Budget) -> list[Pair[Tensor]]:
        """Return score_G and score_I of each layer on the scale `scale`, in float64, higher = keep."""
        if not self.ranks_errors:
            return [Pair(standardise(layer.attention).mean(dim=1), standardise(layer.mlp)) for layer in scores.layers]
        weights = scores.inverse_power if self.scale == "relative" else [1.0] * len(scores.layers)
        return [
            Pair(*(error_U / price * weight for error_U, price in zip(_errors(layer), prices, strict=True)))
            for layer, prices, weight in zip(scores.layers, budget.prices, weights, strict=True)
        ]


def _errors(layer: Pair[Tensor]) -> Pair[Tensor]:
    """Return the squared output error of each unit."""
    return Pair(layer.attention.double().sum(dim=1), layer.mlp.double())
