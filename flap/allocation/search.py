"""search: the units of all layers are ranked by the measured effect of their removal on the model's predictions.

Legend: G attention units · U units of a block · I neurons.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from flap.allocation.adaptive import one_ranking
from flap.allocation.budget import Budget
from flap.allocation.curve import spread
from flap.allocation.plan import LayerPlan, PruningPlan
from flap.allocation.refine import corrected, neighbours
from flap.allocation.structure import Measure, Structure
from flap.allocation.trials import Trial, nats_by_block, removal_counts, unit_scores, without_lowest
from flap.config import require
from flap.importance import Scores
from flap.models import Pair

log = logging.getLogger(__name__)

STRENGTHS = (1.0, 0.5, 0.25)  # exponents of a correction: the first one that lowers the divergence is used

Nats = list[Pair[Tensor]]  # nats per parameter of each layer's units, nats_G and nats_I


@dataclass(frozen=True)
class Search(Structure):
    """search: one ranking of all attention units and neurons by nats per parameter, measured on the predictions.

    First, one block at a time has its lowest-scored units removed, a share from `levels` of them, with compensation,
    while the rest of the model is dense. The divergence is measured on `tokens` calibration tokens (docs/method.md
    says which), and `in_nats` distributes it over the units. Then, in each of `rounds` rounds, blocks of the pruned
    model have a share `step` of their units restored or removed, and `corrected` (refine.py) updates the nats.
    """

    measures: ClassVar[bool] = True

    tokens: int = 2048
    levels: list[float] = field(default_factory=lambda: [0.125, 0.25, 0.5, 0.75])
    rounds: int = 2
    step: float = 0.0625

    def __post_init__(self) -> None:
        share = "between 0 and 1"
        levels_fit = bool(self.levels) and all(0 < level < 1 for level in self.levels)
        require(self.tokens >= 1, "structure.tokens", self.tokens, "a whole number >= 1")
        require(levels_fit, "structure.levels", self.levels, f"shares of a block's units {share}")
        require(self.rounds >= 0, "structure.rounds", self.rounds, "a whole number >= 0")
        require(0 < self.step < 1, "structure.step", self.step, f"a share of a block's units {share}")

    def check(self, budget: Budget) -> None:
        """Check the options as `Structure.check` does.

        Raises:
            ValueError: an option or the ratio does not fit this model, or it has experts.
        """
        super().check(budget)
        if budget.has_experts:
            raise ValueError(
                "structure=search: expected a model without experts; choose another structure for this one"
            )

    def allocate(self, scores: Scores, budget: Budget, measure: Measure | None = None) -> PruningPlan:
        """Return the plan with the lowest divergence found; its `nats` has the divergence after each improvement."""
        assert measure is not None
        trials = [self.trials(scores, i) for i in range(len(scores.layers))]
        single_block = _measure_trials(measure, self.tokens, dense_plan(scores), trials)
        nats = self.in_nats(scores, single_block, budget)
        plan = one_ranking(self, nats, budget)
        divergences = measure([plan], self.tokens)
        for number in range(1, self.rounds + 1):
            log.info("search: %.4f nats a token before round %d", divergences[-1], number)
            better = self._improve(scores, budget, measure, plan, nats, divergences[-1])
            if better is None:
                break
            plan, nats, lower = better
            divergences.append(lower)
        log.info("search: %.4f nats a token at the end", divergences[-1])
        return replace(plan, nats=tuple(divergences))

    def _improve(
        self, scores: Scores, budget: Budget, measure: Measure, plan: PruningPlan, nats: Nats, divergence: float
    ) -> tuple[PruningPlan, Nats, float] | None:
        """Return a plan with a lower divergence, its nats and its divergence; None if no candidate has a lower one."""
        trials = [neighbours(scores.layers[i], layer, self.step) for i, layer in enumerate(plan.layers)]
        measured = _measure_trials(measure, self.tokens, plan, trials)
        rescaled = [corrected(nats, plan, divergence, trials, measured, budget, strength) for strength in STRENGTHS]
        candidates = [one_ranking(self, candidate_nats, budget) for candidate_nats in rescaled]
        divergences = measure(candidates, self.tokens)
        triples = zip(candidates, rescaled, divergences, strict=True)
        return next((triple for triple in triples if triple[2] < divergence), None)

    def trials(self, scores: Scores, layer: int) -> list[Trial]:
        """Return the trials of a layer: each block at each level; at least one unit is removed and one is kept."""
        score_G, score_I = unit_scores(scores.layers[layer])
        heads, neurons = without_lowest(score_G, 0), without_lowest(score_I, 0)
        return [
            *(
                Trial("attention", n, LayerPlan(without_lowest(score_G, n), neurons))
                for n in removal_counts(self.levels, len(heads))
            ),
            *(
                Trial("mlp", n, LayerPlan(heads, without_lowest(score_I, n)))
                for n in removal_counts(self.levels, len(neurons))
            ),
        ]

    def in_nats(self, scores: Scores, divergences: Sequence[Sequence[float]], budget: Budget) -> Nats:
        """Return the nats per parameter of all units; within a block they rank the units as the scores do.

        divergences: of each layer's trials, in the order of `trials`. The rise of the divergence between two levels is
        divided among the units in proportion to their scores. Then the curve is replaced by its lower convex envelope,
        so that no unit has fewer nats than a unit with a lower score.
        """
        return [
            Pair(
                *(
                    spread(score_U, measured) / units.price
                    for score_U, measured, units in zip(
                        unit_scores(scores.layers[i]), nats_by_block(self.trials(scores, i), nats), prices, strict=True
                    )
                )
            )
            for i, (nats, prices) in enumerate(zip(divergences, budget.layers, strict=True))
        ]


def dense_plan(scores: Scores) -> PruningPlan:
    """Return the plan that keeps every unit."""
    layers = (LayerPlan(*(without_lowest(score_U, 0) for score_U in unit_scores(layer))) for layer in scores.layers)
    return PruningPlan(tuple(layers))


def _measure_trials(
    measure: Measure, num_tokens: int, plan: PruningPlan, trials: Sequence[Sequence[Trial]]
) -> list[list[float]]:
    """Return the divergences of each layer's trials; the other layers are as in the plan."""
    plans = [plan.with_layer(i, trial.plan) for i, layer_trials in enumerate(trials) for trial in layer_trials]
    divergences = iter(measure(plans, num_tokens))
    return [[next(divergences) for _ in layer_trials] for layer_trials in trials]
