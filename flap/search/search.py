"""search: the units of all layers are ranked by the measured effect of their removal on the model's predictions.

Legend: G attention units · U units of a block · I neurons.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from flap.allocation import Budget, LayerPlan, PruningPlan, Structure, Units
from flap.allocation.adaptive import one_ranking
from flap.calibration import Calibration
from flap.config import require
from flap.importance import Metric, Scores
from flap.models import Pair
from flap.search.curve import spread_by_rank
from flap.search.divergence import DISTANCES, PlanDivergence
from flap.search.refine import corrected, neighbours
from flap.search.scoring import score_and_try
from flap.search.trials import Trial, nats_by_block, removal_counts, unit_scores, without_lowest
from flap.search.whole_layers import ONLY, with_whole_layers
from flap.storage import WorkFolder

log = logging.getLogger(__name__)

STRENGTHS = (1.0, 0.5, 0.25)  # exponents of a correction; each gives a candidate

Nats = list[Pair[Tensor]]  # nats over price of each layer's units, nats_G and nats_I


@dataclass(frozen=True)
class Search(Structure):
    """search: one ranking of all attention units and neurons by nats over price, measured on the predictions.

    While units are scored, one block at a time has its lowest-scored units removed, a share from `levels` of them, with
    compensation, while the rest of the model is dense. The divergence is measured on `tokens` calibration tokens
    (docs/method.md says which; of a mixture, the text that loses most counts). `in_nats` distributes it over the units,
    which are ranked by nats over price. Then, in each of `rounds` rounds, blocks of the pruned model have a share
    `step` of their units restored or removed, the divergence is measured on `round_tokens` tokens, and `corrected`
    (refine.py) updates the nats. What is measured together costs one walk: all single blocks, in the walk that scores,
    then each plan with its neighbours, then the last candidates. Without rounds the plan itself is not measured:
    `eval=divergence` does that.
    """

    measures: ClassVar[bool] = True

    tokens: int = 4096  # calibration tokens on which each block is measured alone, 1 or more
    round_tokens: int = 1024  # calibration tokens on which a plan and its neighbours are compared in a round, 1 or more
    levels: list[float] = field(default_factory=lambda: [0.25])  # shares of a block's units to remove, each in (0, 1)
    rounds: int = 0  # rounds in which the plan is refined by measurements of its neighbours, 0 or more
    layers: bool | str = False  # true: whole layers leave, too, beside heads and neurons; "only": nothing else leaves
    step: float = 0.0625  # share of a block's units that a neighbour keeps more, or fewer, in (0, 1)
    divergence: str = "kl"  # kl: KL(dense ‖ pruned) in nats; acceptance: 1 - Σ min(p, q), the total variation
    measured_by: PlanDivergence | None = field(default=None, repr=False, compare=False)  # no option: of `measuring`

    def __post_init__(self) -> None:
        levels_fit = bool(self.levels) and all(0 < level < 1 for level in self.levels)
        require(self.tokens >= 1, "structure.tokens", self.tokens, "a whole number >= 1")
        require(self.round_tokens >= 1, "structure.round_tokens", self.round_tokens, "a whole number >= 1")
        require(levels_fit, "structure.levels", self.levels, "shares of a block's units between 0 and 1")
        require(self.rounds >= 0, "structure.rounds", self.rounds, "a whole number >= 0")
        require(self.divergence in DISTANCES, "structure.divergence", self.divergence, " or ".join(DISTANCES))
        require(self.layers in (False, True, ONLY), "structure.layers", self.layers, f"false, true or {ONLY}")
        no_rounds = "0 with structure.layers: no round tries a whole layer"
        require(not (self.layers and self.rounds), "structure.rounds", self.rounds, no_rounds)
        require(0 < self.step < 1, "structure.step", self.step, "a share of a block's units between 0 and 1")

    def measuring(self, divergence: Any) -> "Search":
        """Return the search with what it measures plans by."""
        return replace(self, measured_by=divergence)

    @property
    def trial_options(self) -> dict[str, Any]:
        """The options on which the divergences of the trials depend."""
        whole = [not self.min_heads, not self.min_neurons]
        of_blocks = {"tokens": self.tokens, "levels": self.levels, "whole": whole, "divergence": self.divergence}
        return of_blocks | ({"layers": self.layers} if self.layers else {})

    def score(self, metric: Metric, calibration: Calibration, budget: Budget, work: WorkFolder) -> Scores:
        """Return the scores of all units with the divergences of the trials, from one walk."""
        assert self.measured_by is not None
        return score_and_try(metric, self, budget, self.measured_by, work)

    def allocate(self, scores: Scores, budget: Budget) -> PruningPlan:
        """Return the plan; after rounds the one with the lowest divergence, and in its `nats` that after each gain.

        scores: with the divergences of all `trials`.
        """
        if self.layers:
            return with_whole_layers(self, self.in_nats(scores, budget), scores, budget)
        first = Candidate.of(self, self.in_nats(scores, budget), budget)
        return self._refined(first, scores, budget) if self.rounds else first.plan

    def _refined(self, first: "Candidate", scores: Scores, budget: Budget) -> PruningPlan:
        """Return the best plan of `rounds` rounds, which start from the first candidate."""
        candidates, best = [first], None
        for number in range(self.rounds + 1):
            first, last = candidates[0], number == self.rounds
            trials = [] if last else self._neighbours(scores, first.plan, budget)
            divergences, around = self._measure([one.plan for one in candidates], trials)
            lowest = min(range(len(candidates)), key=divergences.__getitem__)
            if best is not None and divergences[lowest] >= best.nats[-1]:
                break
            so_far = () if best is None else best.nats
            best = replace(candidates[lowest].plan, nats=(*so_far, divergences[lowest]))
            log.info("search: divergence %.4f a token after round %d", divergences[lowest], number)
            if not last:
                candidates = [
                    Candidate.of(
                        self,
                        corrected(first.nats, first.plan, divergences[0], around, budget, strength),
                        budget,
                    )
                    for strength in STRENGTHS
                ]
        assert best is not None
        return best

    def _measure(
        self, plans: Sequence[PruningPlan], trials: Sequence[Sequence[Trial]]
    ) -> tuple[list[float], list[list[tuple[Trial, float]]]]:
        """Return the divergences of the plans, and of the first one with each trial of each layer, in one walk."""
        around = [plans[0].with_layer(i, trial.plan) for i, layer in enumerate(trials) for trial in layer]
        assert self.measured_by is not None
        divergences = iter(self.measured_by([*plans, *around], self.round_tokens))
        return [next(divergences) for _ in plans], [[(trial, next(divergences)) for trial in layer] for layer in trials]

    def _neighbours(self, scores: Scores, plan: PruningPlan, budget: Budget) -> list[list[Trial]]:
        layers = zip(scores.layers, plan.layers, budget.layers, strict=True)
        return [
            neighbours(layer, kept, self.step, prices.mlp.members, prices.mlp.fewest or 1)
            for layer, kept, prices in layers
        ]

    def least(self, budget: Budget) -> list[Pair[int]]:
        """Return the least numbers of units that the layers keep: none where whole layers leave, but in the first."""
        first, *others = super().least(budget)
        if self.layers == ONLY:
            first = budget.dense_widths[0]
        return [first, *(Pair(0, 0) if self.layers else least for least in others)]

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
        if self.layers == ONLY:
            return Pair([], [])
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
            by_block = nats_by_block(zip(self.trials(layer, units), measured, strict=False))  # a whole layer's is last
            blocks = zip(unit_scores(layer), by_block, units, prices, strict=True)
            layers.append(
                Pair(*(spread_by_rank(score_U, nats, one.members) / price for score_U, nats, one, price in blocks))
            )
        return layers


@dataclass(frozen=True)
class Candidate:
    """A plan, and the nats over price of all units that it comes from."""

    nats: Nats
    plan: PruningPlan

    @classmethod
    def of(cls, structure: Structure, nats: Nats, budget: Budget) -> "Candidate":
        """Return the candidate of one ranking by these nats."""
        return cls(nats, one_ranking(structure, nats, budget))
