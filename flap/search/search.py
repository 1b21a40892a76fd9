"""search: the units of all layers are ranked by the measured effect of their removal on the model's predictions.

Legend: G attention units · U units of a block · I neurons.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from flap.allocation import Budget, LayerPlan, PruningPlan, Structure, Units
from flap.allocation.adaptive import one_ranking
from flap.config import require
from flap.importance import Scores
from flap.models import Pair
from flap.search.curve import spread_by_rank
from flap.search.trials import Trial, nats_by_block, removal_counts, unit_scores, without_lowest

Nats = list[Pair[Tensor]]  # nats over price of each layer's units, nats_G and nats_I


@dataclass(frozen=True)
class Search(Structure):
    """search: one ranking of all attention units and neurons by nats over price, measured on the predictions.

    While units are scored, one block at a time has its lowest-scored units removed, a share from `levels` of them, with
    compensation, while the rest of the model is dense. The divergence is measured on `tokens` calibration tokens
    (docs/method.md says which; of a mixture, the text that loses most counts). `in_nats` distributes it over the units,
    which are ranked by nats over price. All of it takes one walk, the one that scores. The plan itself is not measured:
    `eval=divergence` does that.
    """

    measures: ClassVar[bool] = True

    tokens: int = 4096  # calibration tokens on which each block is measured alone, 1 or more
    levels: list[float] = field(default_factory=lambda: [0.25])  # shares of a block's units to remove, each in (0, 1)

    def __post_init__(self) -> None:
        levels_fit = bool(self.levels) and all(0 < level < 1 for level in self.levels)
        require(self.tokens >= 1, "structure.tokens", self.tokens, "a whole number >= 1")
        require(levels_fit, "structure.levels", self.levels, "shares of a block's units between 0 and 1")

    @property
    def trial_options(self) -> dict[str, Any]:
        """The options on which the divergences of the trials depend."""
        whole = [not self.min_heads, not self.min_neurons]
        return {"tokens": self.tokens, "levels": self.levels, "whole": whole}

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return the plan of one ranking by nats over price. scores: with the divergences of all `trials`."""
        return one_ranking(self, self.in_nats(scores, budget), budget)

    def trials(self, scores: Pair[Tensor], prices: Pair[Units]) -> list[Trial]:
        """Return the trials of a layer: each block at each level, and without any units where it may lose all."""
        (score_G, score_I), experts, removals = unit_scores(scores), prices.mlp.members, self.removals(prices)
        heads, neurons = without_lowest(score_G, 0), without_lowest(score_I, 0)
        return [
            *(Trial("attention", n, LayerPlan(without_lowest(score_G, n), neurons)) for n in removals.attention),
            *(Trial("mlp", n, LayerPlan(heads, without_lowest(score_I, n, experts))) for n in removals.mlp),
        ]

    def removals(self, prices: Pair[Units]) -> Pair[list[int]]:
        """Return how many units the trials of each block of a layer remove; of experts, of each one."""
        heads = removal_counts(self.levels, prices.attention.count, prices.attention.fewest or self.min_heads)
        neurons = removal_counts(self.levels, prices.mlp.count, self.min_neurons)
        most = prices.mlp.count - prices.mlp.fewest
        return Pair(heads, sorted({min(n, most) for n in neurons} - {0}))

    def in_nats(self, scores: Scores, budget: Budget) -> Nats:
        """Return the nats over price of all units; within a block they rank the units as the scores do.

        The rise of the divergence between two levels is divided among the units in proportion to their scores. Then the
        curve is replaced by its lower convex envelope, so that no unit has fewer nats than a unit with a lower score.
        """
        layers = []
        for layer, measured, units, prices in zip(
            scores.layers, scores.divergences, budget.layers, budget.prices, strict=True
        ):
            by_block = nats_by_block(zip(self.trials(layer, units), measured, strict=True))
            blocks = zip(unit_scores(layer), by_block, units, prices, strict=True)
            layers.append(
                Pair(*(spread_by_rank(score_U, nats, one.members) / price for score_U, nats, one, price in blocks))
            )
        return layers
