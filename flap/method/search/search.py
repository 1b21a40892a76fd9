"""search: the units of all layers are ranked by the measured effect of their removal on the model's predictions.

Legend: G attention units · U units of a block · I neurons.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from flap.config import require
from flap.method.allocation import Budget, LayerPlan, PruningPlan, Structure, Units
from flap.method.allocation.adaptive import one_ranking
from flap.method.allocation.ranking import highest
from flap.method.importance import Scores
from flap.method.search.curve import spread_by_rank
from flap.models import Pair


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
        return {"tokens": self.tokens, "levels": self.levels}

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return the plan of one ranking by nats over price. scores: with the divergences of all `trials`."""
        return one_ranking(self, self.in_nats(scores, budget), budget)

    def trials(self, scores: Pair[Tensor], units: Pair[Units]) -> list[LayerPlan]:
        """Return the layer of each trial: one block loses its lowest-scored units at each level, the other is whole."""
        (score_G, score_I), removals = unit_scores(scores), self.removals(units)
        heads, neurons = tuple(range(len(score_G))), tuple(range(len(score_I)))
        return [
            *(LayerPlan(highest(score_G, len(heads) - n), neurons) for n in removals.attention),
            *(LayerPlan(heads, highest(score_I, units.mlp.count - n, units.mlp.members)) for n in removals.mlp),
        ]

    def removals(self, prices: Pair[Units]) -> Pair[list[int]]:
        """Return how many units the trials of each block of a layer remove; of experts, of each one."""
        heads, neurons = (removal_counts(self.levels, block.count) for block in prices)
        most = prices.mlp.count - prices.mlp.fewest
        return Pair(heads, sorted({min(n, most) for n in neurons} - {0}))

    def in_nats(self, scores: Scores, budget: Budget) -> list[Pair[Tensor]]:
        """Return nats_G and nats_I of each layer, nats over price; within a block they rank units as the scores do.

        The rise of the divergence between two levels is divided among the units in proportion to their scores. Then the
        curve is replaced by its lower convex envelope, so that no unit has fewer nats than a unit with a lower score.
        """
        rows = zip(scores.layers, scores.divergences, budget.layers, budget.prices, strict=True)
        return [self._of_layer(*row) for row in rows]

    def _of_layer(
        self, scores: Pair[Tensor], measured: Sequence[float], units: Pair[Units], prices: Pair[float]
    ) -> Pair[Tensor]:
        heads, neurons = self.removals(units)
        by_removal = dict(zip(heads, measured, strict=False)), dict(zip(neurons, measured[len(heads) :], strict=True))
        blocks = zip(unit_scores(scores), by_removal, units, prices, strict=True)
        return Pair(*(spread_by_rank(score_U, nats, one.members) / price for score_U, nats, one, price in blocks))


def unit_scores(layer: Pair[Tensor]) -> Pair[Tensor]:
    """Return score_G and score_I of a layer: for each unit the sum over its channels."""
    return Pair(layer.attention.sum(dim=1), layer.mlp)


def removal_counts(levels: Sequence[float], units: int) -> list[int]:
    """Return how many units the shares `levels` of a block are, ascending; at least one is removed and one stays.

    Where no share comes to a unit of a block of few units, the nearest number that does is tried.
    """
    if units < 2:
        return []
    counts = {math.floor(level * units + 0.5) for level in levels}
    return sorted({n for n in counts if 0 < n < units} or {min(max(n, 1), units - 1) for n in counts})
