"""The scale on which units of different layers are compared: z-scores as in FLAP, or what their removal costs.

Legend: G attention units · C channels a unit · I neurons.
"""

from dataclasses import dataclass

from torch import Tensor

from flap.allocation.budget import Budget
from flap.allocation.ranking import standardise
from flap.allocation.structure import Structure
from flap.importance import Scores

SCALES = ("z-score", "error", "relative")


@dataclass(frozen=True, kw_only=True)
class Scaled(Structure):
    """A structure that ranks units over all layers.

    scale: z-score = standardised over all channels of one layer and module type, averaged over a unit's channels; it
    says nothing across layers. error = a unit's squared output error (its scores' sum) per parameter that leaves with
    it. relative = that error relative to the residual stream of an ordinary token, ‖e‖² / ‖h‖², per parameter.
    """

    scale: str = "z-score"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"structure.scale={self.scale}: expected one of {', '.join(SCALES)}")

    @property
    def ranks_errors(self) -> bool:
        """Whether scores must be squared output errors."""
        return self.scale != "z-score"

    def check(self, budget: Budget) -> None:
        super().check(budget)
        if self.ranks_errors and any(layer.experts > 1 for layer in budget.layers):
            raise ValueError(
                f"structure.scale={self.scale}: an expert's error is one of the tokens routed to it, and compares with "
                "no other; expected z-score for a model with experts"
            )

    def of_heads(self, scores: Scores, budget: Budget) -> list[Tensor]:
        """score_G of each layer."""
        if not self.ranks_errors:
            return [standardise(score_GC).mean(dim=1) for score_GC in scores.kv_heads]
        prices = [layer.kv_head_price for layer in budget.layers]
        return self._per_parameter([score_GC.double().sum(dim=1) for score_GC in scores.kv_heads], prices, scores)

    def of_neurons(self, scores: Scores, budget: Budget) -> list[Tensor]:
        """score_I of each layer."""
        if not self.ranks_errors:
            return [standardise(score_I) for score_I in scores.neurons]
        prices = [layer.neuron_price for layer in budget.layers]
        return self._per_parameter([score_I.double() for score_I in scores.neurons], prices, scores)

    def _per_parameter(self, errors: list[Tensor], prices: list[int], scores: Scores) -> list[Tensor]:
        weights = scores.inverse_power if self.scale == "relative" else [1.0] * len(errors)
        triples = zip(errors, prices, weights, strict=True)
        return [error_U / price * weight for error_U, price, weight in triples]
